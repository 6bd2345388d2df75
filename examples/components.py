"""How many components: the ablation over K (1, 2, 4, 8) on real handwritten digits, at 6 network evaluations.

The same network and training but for the head's K, from several seeds; the score is the Fréchet distance to digits that
took no part in training (`digits`), beside that of real training digits. A table and a picture of mean and standard
deviation over the seeds.

    python examples/components.py            # about 50 minutes on one idle core; may be stopped, and resumes
    python examples/components.py --seeds 1
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from digits import SAMPLES, Digits, Score, budget, prepare, score, trained

from gmtool.console import print_table
from gmtool.settings import changed, make
from gmtool.stages.sample.config import SampleConfig

COMPONENTS = (1, 2, 4, 8)
SOLVERS = ("gm-ode", "gm-sde")


@dataclass(frozen=True)
class Spent:
    """Training steps, images per step, network evaluations per sample, samples of a score, and seeds."""

    steps: int
    batch: int
    evaluations: int
    samples: int
    seeds: int


def scores(digits: Digits, components: int, solver: str, spent: Spent) -> list[Score]:
    """The scores of K = ``components`` under a solver of order 2, one per seed."""
    scored = []
    for seed in range(spent.seeds):
        training = {"objective": "gm-kl", "source": "gaussian", "components": components, "batch_size": spent.batch}
        sampling = {"solver": solver, "steps": spent.evaluations, "num": spent.samples, "seed": seed, "device": "cpu"}
        run = trained(digits, changed(budget(spent.steps, seed), training))
        scored.append(score(digits, run, make(SampleConfig, sampling)))
    return scored


def spread(values: list[float]) -> float:
    """The standard deviation over seeds, 0 for a single one."""
    return stdev(values) if len(values) > 1 else 0.0


def report(distances: dict[str, dict[int, list[float]]], floor: float, evaluations: int, path: Path) -> None:
    """Print the table, and draw it into ``path``. distances: by solver and K, one per seed."""
    print_table(
        f"Fréchet distance to held-out digits at {evaluations} evaluations (real digits: {floor:.2f})",
        ("solver", *(f"K = {components}" for components in COMPONENTS)),
        [
            (solver, *(f"{mean(values):.2f} ±{spread(values):.2f}" for values in by_components.values()))
            for solver, by_components in distances.items()
        ],
    )
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="components K", ylabel="Fréchet distance to held-out digits")
    for solver, by_components in distances.items():
        means, spreads = zip(*((mean(values), spread(values)) for values in by_components.values()), strict=True)
        axes.errorbar(COMPONENTS, means, spreads, label=f"{solver} 2", capsize=2)
    axes.axhline(floor, color="grey", linestyle="dashed", label="real digits")
    axes.set_xticks(COMPONENTS, [str(components) for components in COMPONENTS])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=150)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("digits-study"), help="runs, scores, the picture")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500, help="of training")
    parser.add_argument("--batch", type=int, default=64, help="images of a training step")
    parser.add_argument("--evaluations", type=int, default=6, help="of the network, a sample")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="digits of a score")
    return parser.parse_args()


def main() -> None:
    options = parse()
    spent = Spent(options.steps, options.batch, options.evaluations, options.samples, options.seeds)
    digits = prepare(options.folder, "test")
    scored = {
        solver: {components: scores(digits, components, solver, spent) for components in COMPONENTS}
        for solver in SOLVERS
    }
    floor = mean(one.floor for by_components in scored.values() for group in by_components.values() for one in group)
    distances = {
        solver: {components: [one.distance for one in group] for components, group in by_components.items()}
        for solver, by_components in scored.items()
    }
    report(distances, floor, options.evaluations, options.folder / "components.png")


if __name__ == "__main__":
    main()
