"""Whether training waits for data: what the loader delivers over what the quickstart's training step consumes.

The digits and the settings are those of ``gmtool quickstart``, also on the fitted mixture's source; batches are
normalised, labelled and given the frames of their noise, as training takes them. The loader delivers from memory, as
it does by default, and reads from the disk, here and in a process of its own. Medians of interleaved runs.

    python examples/benchmarks/loader.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gmtool.artifacts.gmm import GmmFile, open_gmm
from gmtool.artifacts.latents import LatentsFile, open_latents
from gmtool.artifacts.run import latent_statistics
from gmtool.console import print_table
from gmtool.data.digits import write_digits
from gmtool.data.mode_statistics import ModeFrames
from gmtool.distributed import World
from gmtool.nn.build import build_network
from gmtool.progress import Progress
from gmtool.runtime import resolve_device
from gmtool.stages.encode.run import encode_images
from gmtool.stages.fit_gmm.run import fit_gmm
from gmtool.stages.presets import load_preset
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.inputs import open_data
from gmtool.stages.train.plan import architecture_for, resolve
from gmtool.throughput import synchronise
from gmtool.training.checkpoint import Position
from gmtool.training.loss import Batch
from gmtool.training.state import make_state
from gmtool.training.step import Stepper

WAYS = {"from memory": None, "from disk": 0, "from disk, one process": 1}
"""What the loader does, and the setting of ``--workers`` that makes it do so."""


def make_data(folder: Path) -> tuple[Path, Path]:
    """The quickstart's latents and mixture."""
    preset = load_preset("quickstart")
    images, _ = write_digits(folder / "digits")
    latents, gmm = folder / "latents.h5", folder / "gmm.h5"
    encode_images(images, latents, preset.config("encode"), Progress())
    fit_gmm(latents, gmm, preset.config("fit-gmm"), Progress())
    return latents, gmm


@dataclass(frozen=True)
class Source:
    """Where batches come from, with resolved settings but for the number of steps and of workers."""

    latents: LatentsFile
    gmm: GmmFile
    config: TrainConfig
    device: torch.device

    def batches(self, steps: int, workers: int | None) -> Iterator[Batch]:
        """The batches of so many steps, and one before them, as training takes them."""
        config, statistics = replace(self.config, steps=steps + 1, workers=workers), latent_statistics(self.latents)
        frames = ModeFrames(self.gmm, statistics, self.device, whitened=config.union) if config.uses_frames else None
        data = open_data(self.latents, self.gmm, config, statistics.to(self.device), frames, World(device=self.device))
        return data.batches(Position())


def delivered(source: Source, steps: int, workers: int | None) -> float:
    """Images a second that come when nothing is done with them; the first batch, before which all starts, is free."""
    batches = source.batches(steps, workers)
    next(batches)
    started = time.perf_counter()
    count = sum(len(each.x) for each in batches)
    synchronise(source.device)
    return count / (time.perf_counter() - started)


def consumed(stepper: Stepper, source: Source, steps: int) -> float:
    """Images a second that training steps take in when the data are there; the first step is free."""
    first, *others = source.batches(steps, None)
    stepper.take(first, 0, 0)
    synchronise(source.device)
    started = time.perf_counter()
    for step, each in enumerate(others, 1):
        stepper.take(each, step, 0)
    synchronise(source.device)
    return steps * len(first.x) / (time.perf_counter() - started)


def measure(latents: LatentsFile, gmm: GmmFile, config: TrainConfig, options: argparse.Namespace) -> list[list[str]]:
    device = resolve_device(options.device)
    config = resolve(config, latents, gmm, device)
    source = Source(latents, gmm, config, device)
    network = build_network(architecture_for(config, latents, gmm), 0).to(device)
    stepper = Stepper(config, make_state(network, config))
    taken: list[float] = []
    given: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        taken.append(consumed(stepper, source, options.steps))
        for way, workers in WAYS.items():
            given[way].append(delivered(source, 10 * options.steps, workers))
    step = statistics.median(taken)
    rates = {way: statistics.median(each) for way, each in given.items()}
    name = f"{config.objective}, {config.source} source"
    return [
        [f"{name}, {way}", f"{rate:,.0f}", f"{step:,.0f}", f"{rate / step:.1f}", "yes" if rate >= 5 * step else "no"]
        for way, rate in rates.items()
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--steps", type=int, default=20, help="training steps a run; the loader gives ten times as many"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the median is taken")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        paths = make_data(Path(folder))
        with open_latents(paths[0]) as latents, open_gmm(paths[1]) as gmm:
            own = replace(load_preset("quickstart").config("train"), device=options.device)
            rows = measure(latents, gmm, own, options) + measure(latents, gmm, replace(own, source="gmm"), options)
    title = f"{len(rows)} ways to {own.batch_size} images a step, on {resolve_device(options.device)}"
    print_table(title, ("loader", "delivered, images/s", "consumed, images/s", "ratio", "at least 5"), rows)


if __name__ == "__main__":
    main()
