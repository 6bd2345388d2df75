"""Fit a diagonal mixture by gmtool and by scikit-learn: held-out log-likelihood, time, peak memory, share of the limit.

Both start from k-means++ seeds and do the same number of EM iterations; gmtool puts Lloyd's iterations of k-means in
between, as `gmtool fit-gmm` does. Each runs in a process of its own, so that its peak memory is its own; the memory of
the libraries and the data is subtracted. One fit is one local optimum of many: compare likelihoods over several
--repeats, each of other seeds on the same data.

Time is reported twice: wall-clock time, and processor time, which other work on the machine affects less. The limit is
the rate of a matrix product of 2048 x 2048 float32 in the same process, in the processors' time; an EM iteration takes
8 N K D operations, in two products.

    python examples/benchmarks/em.py --data 50000 --size 128 --modes 256
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
import warnings
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gmtool.console import print_table
from gmtool.mixture.em import Blocks, Fit, block_rows, fit_em, label_moments, log_likelihood, start_from_clusters
from gmtool.mixture.kmeans import kmeans, seed_centroids
from gmtool.mixture.settings import EmSettings
from gmtool.runtime import resolve_device

FLOOR = 1e-6


class Found(NamedTuple):
    """Log-likelihood of fitted and held-out data, and EM's operations per second of processor time (0: not known)."""

    fitted: float
    held_out: float
    rate: float


@dataclass(frozen=True)
class Outcome:
    """Mean log-likelihood of fitted and of held-out data in nats, seconds by the clock and of the processors, peak
    memory in MiB over the data's, share of the machine's rate of matrix products that EM's reach (0: not known).
    """

    fitted: float
    held_out: float
    seconds: float
    processor: float
    memory: float
    share: float


def make_data(n: int, size: int, modes: int, seed: int) -> np.ndarray:
    """Draws (n, size) float32 from a mixture of twice as many modes, of unequal weights, that overlap somewhat."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(2 * modes, 2.0))
    labels = rng.choice(2 * modes, size=n, p=weights)
    means = rng.normal(size=(2 * modes, size)).astype(np.float32)
    spreads = rng.uniform(0.5, 2.0, (2 * modes, size)).astype(np.float32)
    data = rng.standard_normal((n, size), dtype=np.float32)
    for start in range(0, n, 4096):  # no second array of this size, whose memory would hide that of the fit
        block, own = data[start : start + 4096], labels[start : start + 4096]
        block *= spreads[own]
        block += means[own]
    return data


def by_gmtool(fitted: np.ndarray, held_out: np.ndarray, options: argparse.Namespace, seed: int) -> Found:
    device = resolve_device(options.device)
    seeds = seed_centroids(fitted, options.modes, seed=seed, device=device)
    clusters = kmeans(fitted, seeds, iterations=options.kmeans_iterations, device=device)
    blocks = Blocks(fitted, block_rows(options.modes, device), device)
    moments = label_moments(blocks, torch.from_numpy(clusters.labels).to(device), options.modes)
    start = start_from_clusters(torch.from_numpy(clusters.centroids).to(device), moments, FLOOR)
    began = time.process_time()
    settings = EmSettings(options.iterations, tolerance=0.0, variance_floor=FLOOR)
    mixture = fit_em(blocks, Fit(start), settings).mixture
    rate = 8 * fitted.size * options.modes * options.iterations / (time.process_time() - began)
    return Found(log_likelihood(blocks, mixture), log_likelihood(replace(blocks, data=held_out), mixture), rate)


def by_scikit_learn(fitted: np.ndarray, held_out: np.ndarray, options: argparse.Namespace, seed: int) -> Found:
    from sklearn.mixture import GaussianMixture

    model = GaussianMixture(
        options.modes,
        covariance_type="diag",
        init_params=options.start,
        max_iter=options.iterations,
        tol=0.0,
        reg_covar=FLOOR,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged, which is meant
        model.fit(fitted)
    return Found(float(model.score(fitted)), float(model.score(held_out)), 0.0)


def matrix_rate() -> float:
    """Operations per second of a processor's time in a product of 2048 x 2048 float32, the best of five."""
    first, second = torch.randn(2, 2048, 2048)
    best = float("inf")
    for _ in range(6):  # the first one warms up
        started = time.process_time()
        first @ second
        best = min(best, time.process_time() - started)
    return 2 * 2048**3 / best


METHODS = {"gmtool": by_gmtool, "scikit-learn": by_scikit_learn}


def measure(method: str, file: Path, options: argparse.Namespace, seed: int) -> Outcome:
    """Run one method on the data (n, D) in ``file``; called in a process of its own."""
    import faiss  # noqa: F401  # both methods are charged without the libraries
    import sklearn.mixture  # noqa: F401

    data = np.load(file)
    fitted, held_out = data[: options.data], data[options.data :]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, began = time.perf_counter(), time.process_time()
    result = METHODS[method](fitted, held_out, options, seed)
    seconds, processor = time.perf_counter() - started, time.process_time() - began
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return Outcome(result.fitted, result.held_out, seconds, processor, memory, result.rate / matrix_rate())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=int, default=50_000, help="data to fit")
    parser.add_argument("--held-out", type=int, default=10_000, help="data to score")
    parser.add_argument("--size", type=int, default=128, help="dimensions")
    parser.add_argument("--modes", type=int, default=256, help="modes of the fit; the data have twice as many")
    parser.add_argument("--iterations", type=int, default=20, help="of EM, in both")
    parser.add_argument("--kmeans-iterations", type=int, default=2, help="at most, in gmtool")
    parser.add_argument("--start", choices=("k-means++", "kmeans"), default="k-means++", help="of scikit-learn")
    parser.add_argument("--device", default="auto", help="of gmtool")
    parser.add_argument("--seed", type=int, default=0, help="of the data")
    parser.add_argument("--repeats", type=int, default=1, help="fits to average, from seeds 0, 1, ...")
    options = parser.parse_args()
    outcomes: dict[str, Outcome] = {}
    spreads: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.npy"
        np.save(file, make_data(options.data + options.held_out, options.size, options.modes, options.seed))
        for method in METHODS:
            with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
                runs = [pool.apply(measure, (method, file, options, seed)) for seed in range(options.repeats)]
            values = np.array([astuple(run) for run in runs])
            outcomes[method], spreads[method] = Outcome(*values.mean(axis=0)), Outcome(*values.std(axis=0))
    slowest = outcomes["scikit-learn"]
    print_table(
        f"{options.data:,} x {options.size}, {options.modes} modes, {options.iterations} EM iterations, mean and "
        f"standard deviation of {options.repeats}",
        (
            "",
            "fitted, nats",
            "held-out, nats",
            "clock, s",
            "speed",
            "processor, s",
            "speed",
            "memory, MiB",
            "of the limit",
        ),
        [
            (
                method,
                f"{outcome.fitted:.3f} ± {spreads[method].fitted:.3f}",
                f"{outcome.held_out:.3f} ± {spreads[method].held_out:.3f}",
                f"{outcome.seconds:.1f}",
                f"{slowest.seconds / outcome.seconds:.1f}x",
                f"{outcome.processor:.1f}",
                f"{slowest.processor / outcome.processor:.1f}x",
                f"{outcome.memory:.0f}",
                f"{outcome.share:.0%}" if outcome.share else "",
            )
            for method, outcome in outcomes.items()
        ],
    )


if __name__ == "__main__":
    main()
