"""The picture at the top of the README: digits by every method from the same noise, in 1, 2, 4 and 6 evaluations.

All networks have the same size and budget, that of `digits_study`; a row is a method, each column of a block the same
noise and the same class. The last row is the union's student of one evaluation, trained for as many steps. Nothing is
selected: the columns are the first samples of seed 0.

    python examples/methods_picture.py             # about 20 minutes on one idle core; may be stopped, and resumes
    python examples/methods_picture.py --quick     # the same in miniature, for a look at the output
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
from digits import Digits, imitation, mixture, prepare, student, trained
from digits_study import FULL, QUICK, Method, Setting, sampler, training

from gmtool.artifacts.samples import open_samples
from gmtool.console import ConsoleProgress
from gmtool.settings import changed, make
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.sample.run import sample

EVALUATIONS = (1, 2, 4, 6)
DIGITS = 7
"""Samples of a block, the classes 0, 1, 2, ... in turn."""


def images(digits: Digits, run: Path, config: SampleConfig) -> np.ndarray:
    """The samples of a run by these settings, (N, 8, 8)."""
    with tempfile.TemporaryDirectory(dir=digits.root) as folder:
        sample(run, Path(folder) / "samples", config, ConsoleProgress())
        return np.array(open_samples(Path(folder) / "samples").images()[..., 0])


def rows(digits: Digits, setting: Setting) -> dict[str, list[np.ndarray]]:
    """For each method the samples of each number of evaluations; a student's are those of one."""
    modes = setting.modes[-1]
    methods = (
        Method("flow matching", "fm", 0),
        Method("GMFlow", "gm-kl", 0),
        Method("MM-FM", "fm", modes),
        Method("union", "gm-kl", modes),
    )
    drawn = {}
    for method in methods:
        run = trained(digits, training(digits, method, setting, seed=0))
        solver = "gm-ode" if method.objective == "gm-kl" else "euler"
        sampling = sampler(method, solver, DIGITS, seed=0)
        drawn[method.name] = [images(digits, run, changed(sampling, {"steps": count})) for count in EVALUATIONS]
    settings = imitation(1, setting.steps, setting.batch, mixture(digits, modes, seed=0), seed=0)
    taught = make(SampleConfig, {"num": DIGITS, "seed": 0, "device": "cpu"})
    drawn["its student"] = [images(digits, student(digits, run, settings), taught)]
    return drawn


def draw(drawn: dict[str, list[np.ndarray]], path: Path) -> None:
    """Write the picture: a row per method, a block per number of evaluations."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(drawn), len(EVALUATIONS), figsize=(11, 0.44 * len(drawn) + 0.4), layout="constrained"
    )
    for axis, evaluations in zip(axes[0], EVALUATIONS, strict=True):
        axis.set_title(f"{evaluations} evaluation{'s' if evaluations > 1 else ''}", fontsize=10)
    for row, (name, blocks) in zip(axes, drawn.items(), strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axis in row[len(blocks) :]:
            axis.axis("off")
        for axis, block in zip(row, blocks, strict=False):
            axis.imshow(np.concatenate(list(block), axis=1), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, default=Path("digits-study"), help="where runs are made and kept")
    parser.add_argument("--out", type=Path, default=Path("examples/images/methods.png"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    digits = prepare(options.folder, "test")
    draw(rows(digits, QUICK if options.quick else FULL), options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
