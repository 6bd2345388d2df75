"""A solver of your own in gmtool's `sample` stage: a class with a step, and a row of the table.

A small network is trained on handwritten digits and sampled by the midpoint rule and by Euler's method; the output is
their distances from a far finer solution. The row alone makes the solver known to ``--solver`` and its checks.

    python examples/own_solver.py
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gmtool.artifacts.latents import open_latents
from gmtool.console import ConsoleProgress
from gmtool.data.digits import write_digits
from gmtool.flow.model import VelocityModel
from gmtool.flow.solvers import SOLVERS, SolverEntry
from gmtool.flow.solvers.base import Memoryless
from gmtool.flow.times import expand
from gmtool.settings import make
from gmtool.stages.encode.config import EncodeConfig
from gmtool.stages.encode.run import encode_images
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.sample.run import sample
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.run import train
from gmtool.streams import Noise


@dataclass(frozen=True)
class Midpoint(Memoryless[VelocityModel]):
    """x_s = x_t + (s - t) u(x_m, m), where Euler's method goes to x_m at m = (t + s) / 2. Order 2."""

    def intervals(self, evaluations: int) -> int:
        """Two evaluations per interval; one interval at least."""
        return max(1, evaluations // 2)

    def step(
        self, model: VelocityModel, x: Tensor, t: float, s: float, _state: None, _noise: Noise | None
    ) -> tuple[Tensor, None]:
        middle = (t + s) / 2
        halfway = x + (middle - t) * model(x, expand(t, x))
        return x + (s - t) * model(halfway, expand(middle, x)), None


SOLVERS["midpoint"] = SolverEntry(Midpoint, "velocity", noisy=False, help="the midpoint rule", order=2)


def latents(run: Path, folder: Path, solver: str, evaluations: int) -> Tensor:
    """What `gmtool sample` draws, normalised."""
    settings = {"solver": solver, "steps": evaluations, "num": 16, "device": "cpu"}
    print(sample(run, folder, make(SampleConfig, settings), ConsoleProgress()).plan.words)
    with open_latents(folder / "latents.h5") as drawn:
        return torch.from_numpy(drawn.patches(slice(None))).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("own-solver"))
    parser.add_argument("--steps", type=int, default=100, help="of training")
    options = parser.parse_args()
    folder, progress = options.folder, ConsoleProgress()
    images, _ = write_digits(folder / "digits")
    settings = {"tokenizer": "pixels", "patch_size": 2, "device": "cpu"}
    encode_images(images, folder / "latents.h5", make(EncodeConfig, settings), progress)
    settings = {
        "model": "tiny",
        "steps": options.steps,
        "warmup": 0,
        "ema": (0.9,),
        "preview_every": 0,
        "device": "cpu",
    }
    train(folder / "latents.h5", folder / "run", make(TrainConfig, settings), progress)
    fine = latents(folder / "run", folder / "samples", "midpoint", 128)
    for solver in ("euler", "midpoint"):
        error = latents(folder / "run", folder / "samples", solver, 16) - fine
        print(f"{solver}, 16 evaluations: root mean square error {error.square().mean().sqrt():.4f}")


if __name__ == "__main__":
    main()
