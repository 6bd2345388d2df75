"""The cost of fit-gmm at scale, on synthetic data: time, memory, and fraction of what the machine could do.

``em`` times k-means' seeds, its iterations and EM's, and compares their operations with the rate of a matrix product in
the same process. ``patches`` writes a latents file, measures how fast the disk gives it back from start to end, then
takes the modes' moments within --memory and with memory for all modes, when each sample keeps one mode and when half
keep two: how fast all of it went, once compiled, by the bytes read, and how far the two are apart. What the system has
cached of the file is dropped before each reading.

    python examples/benchmarks/fit_scale.py em --data 200000 --size 768 --modes 4096 --iterations 2
    python examples/benchmarks/fit_scale.py patches --gigabytes 20 --memory 2 --folder /scratch
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from em import make_data, matrix_rate

from gmtool.artifacts.latents import LatentsFile, Provenance, open_latents, write_latents
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.console import print_table
from gmtool.mixture.em import Blocks, Fit, block_rows, em_iterations, label_moments, start_from_clusters
from gmtool.mixture.kmeans import SEED_POINTS, SEED_POINTS_PER_CLUSTER, kmeans, seed_centroids
from gmtool.mixture.patch_kernels import Add, adder
from gmtool.mixture.patch_moments import mode_block, patch_moments, share_memory
from gmtool.mixture.settings import EmSettings, PatchSettings
from gmtool.runtime import resolve_device
from gmtool.words import human_bytes

SHAPE = (768, 16, 16)


def peak_memory(anew: bool = False) -> float:
    """Bytes of memory that this process has had at most; ``anew``: from now on, where Linux lets it be forgotten."""
    if anew and Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def timed(what: Callable[[], object]) -> tuple[object, float, float]:
    """What it gives, seconds by the clock and of the processors."""
    started, began = time.perf_counter(), time.process_time()
    result = what()
    return result, time.perf_counter() - started, time.process_time() - began


def em(options: argparse.Namespace) -> None:
    device = resolve_device(options.device)
    data = make_data(options.data, options.size, options.modes, 0)
    data -= data.mean(axis=0)
    before, rate = peak_memory(anew=True), matrix_rate()
    rows = []

    def tell(name: str, operations: float, seconds: float, processor: float) -> None:
        share = operations / processor / rate
        rows.append((name, f"{seconds:.1f}", f"{processor:.1f}", f"{operations / 1e12:.2f}", f"{share:.0%}"))

    product = 2.0 * options.data * options.size * options.modes
    seeds, *times = timed(lambda: seed_centroids(data, options.modes, seed=0, device=device))
    subset = min(options.data, max(SEED_POINTS, SEED_POINTS_PER_CLUSTER * options.modes))
    tell("seeds", product / options.data * subset * (2 + int(math.log(options.modes))), *times)
    clusters, *times = timed(lambda: kmeans(data, seeds, iterations=1, device=device))
    tell("k-means iteration and assignment", 2 * product, *times)
    blocks = Blocks(data, block_rows(options.modes, device), device)
    labels = label_moments(blocks, torch.from_numpy(clusters.labels).to(device), options.modes)
    start = start_from_clusters(torch.from_numpy(clusters.centroids).to(device), labels, 1e-6)
    fits = em_iterations(blocks, Fit(start), EmSettings(options.iterations, tolerance=0.0))
    for index in range(options.iterations):
        _, *times = timed(lambda: next(fits))
        tell(f"EM iteration {index + 1}", 4 * product, *times)
    print_table(
        f"{options.data:,} x {options.size:,}, {options.modes:,} modes; matrix products {rate / 1e9:.0f} GFLOP/s; "
        f"memory over the data's {human_bytes(peak_memory() - before)}",
        ("", "clock, s", "processor, s", "TFLOP, dense", "of the limit"),
        rows,
    )


def make_latents(path: Path, count: int) -> None:
    """A latents file of ``count`` samples, cheap to make: a pool of noise, shifted by eighths."""
    rng = np.random.default_rng(0)
    pool = rng.standard_normal((64, *SHAPE), dtype=np.float32).astype(np.float16)

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, count, 64):
            size = min(64, count - start)
            yield pool[rng.permutation(64)[:size]] + rng.integers(-8, 9, (size, SHAPE[0], 1, 1)).astype(np.float16) / 8

    write_latents(
        path,
        patches=batches(),
        descriptors=np.zeros((count, 1), np.float32),
        labels=np.zeros(count, np.int64),
        names=[f"{index}.png" for index in range(count)],
        classes=["all"],
        tokenizer=TokenizerSpec("pixels", {}),
        provenance=Provenance("encode", {}),
    )


def forget(path: Path) -> None:
    """Drop what the system has cached of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def sequential_rate(path: Path) -> float:
    """Bytes per second of reading a file from start to end, 8 MiB at a time."""
    forget(path)
    buffer = bytearray(1 << 23)
    started = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return path.stat().st_size / (time.perf_counter() - started)


@dataclass(frozen=True)
class Pass:
    """First entries of each mode's mean and deviation (K, 2, 8, H, W), latents read, bytes per second of it all."""

    entries: np.ndarray
    reads: int
    rate: float


def moments(source: LatentsFile, kept: tuple[np.ndarray, np.ndarray], modes: int, memory: float, add: Add) -> Pass:
    """The moments of the first entries of all modes, within a memory."""
    forget(source.path)
    share = share_memory(modes, SHAPE, memory)
    blocks = [mode_block(*kept, first, min(first + share.modes, modes)) for first in range(0, modes, share.modes)]
    reads = sum(len(block.rows) for block in blocks)
    entries = np.zeros((modes, 2, 8, *SHAPE[1:]), np.float32)
    started = time.perf_counter()
    for fitted in patch_moments(
        source, *kept, blocks, PatchSettings(), floor=1e-5, memory=share, threads=torch.get_num_threads(), add=add
    ):
        entries[fitted.patch.mode] = fitted.patch.mean[:8], fitted.patch.std[:8]
    return Pass(entries, reads, 2 * math.prod(SHAPE) * reads / (time.perf_counter() - started))


def patches(options: argparse.Namespace) -> None:
    count = int(options.gigabytes * 1e9 / (2 * math.prod(SHAPE)))
    rng = np.random.default_rng(1)
    modes = rng.integers(options.modes, size=(count, 2)).astype(np.int32)
    soft = np.tile(np.float32([0.75, 0.25]), (count, 1))
    soft[::2] = [1, 0]
    assignments = {"hard": np.tile(np.float32([1, 0]), (count, 1)), "half keep two modes": soft}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "latents.h5"
        make_latents(path, count)
        with open_latents(path) as source:
            add = adder(options.gigabytes * 1e9)
            moments(source, (np.zeros_like(modes[:1]), np.ones((1, 2), np.float32)), 1, 2**30, add)  # compiles the loop
            rows = []
            for name, shares in assignments.items():
                passes = []
                for bound, memory in ((f"{options.memory:g} GiB", options.memory * 2**30), ("no bound", 64 * 2**30)):
                    disk = sequential_rate(path)
                    before = peak_memory(anew=True)
                    passes.append(moments(source, (modes, shares), options.modes, memory, add))
                    grown, last = peak_memory() - before, passes[-1]
                    rows.append(
                        (
                            name,
                            bound,
                            f"{last.reads / count:.2f}",
                            f"{disk / 1e6:.0f}",
                            f"{last.rate / 1e6:.0f}",
                            f"{last.rate / disk:.0%}",
                            human_bytes(grown),
                            f"{float(np.abs(passes[0].entries - last.entries).max()):.1e}",
                        )
                    )
    print_table(
        f"{human_bytes(2 * math.prod(SHAPE) * count)} of latents, {options.modes:,} modes",
        ("assignment", "--memory", "reads a sample", "disk, MB/s", "read, MB/s", "share", "memory grew by", "apart"),
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("em", "patches"))
    parser.add_argument("--data", type=int, default=200_000, help="descriptors")
    parser.add_argument("--size", type=int, default=768, help="dimensions of a descriptor")
    parser.add_argument("--modes", type=int, default=4096)
    parser.add_argument("--iterations", type=int, default=2, help="of EM")
    parser.add_argument("--device", default="auto", help="for em")
    parser.add_argument("--gigabytes", type=float, default=20.0, help="of latents")
    parser.add_argument("--memory", type=float, default=2.0, help="GiB for the patches")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; default: the system's")
    options = parser.parse_args()
    {"em": em, "patches": patches}[options.what](options)


if __name__ == "__main__":
    main()
