"""Whether training waits for data: what the loader delivers over what the quickstart's training step consumes.

The digits and the settings are those of ``gmtool quickstart``, also on the fitted mixture's source; batches are
normalised, labelled and given the modes of their noise, as training takes them. The loader delivers from memory, as
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

from gmtool.artifacts.gmm import GmmFile, open_gmm
from gmtool.artifacts.latents import LatentsFile, open_latents
from gmtool.console import print_table
from gmtool.data.digits import write_digits
from gmtool.distributed import World, join
from gmtool.progress import Progress
from gmtool.settings import changed
from gmtool.stages.encode.run import encode_images
from gmtool.stages.fit_gmm.run import fit_gmm
from gmtool.stages.presets import load_preset
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.inputs import TrainInputs, open_data, open_inputs
from gmtool.stages.train.plan import facts_of, plan_training
from gmtool.stages.train.run import make_stepper, new_state
from gmtool.throughput import synchronise
from gmtool.training.checkpoint import Position
from gmtool.training.step import Stepper
from gmtool.training.task import Batch

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
    """Where batches come from: open files, and settings but for the number of steps and of workers."""

    latents: LatentsFile
    gmm: GmmFile
    config: TrainConfig
    world: World

    def inputs(self, steps: int, workers: int | None) -> TrainInputs:
        """What a run of so many steps, and one before them, is trained on."""
        config = changed(self.config, {"steps": steps + 1, "workers": workers})
        plan = plan_training(config, facts_of(self.latents, self.gmm), gpu=self.world.device.type == "cuda")
        return open_inputs(plan, self.latents, self.gmm, self.world)

    def batches(self, steps: int, workers: int | None) -> Iterator[Batch]:
        """The batches of such a run, as training takes them."""
        return open_data(self.inputs(steps, workers)).batches(Position())


def delivered(source: Source, steps: int, workers: int | None) -> float:
    """Images per second that come when nothing is done with them; the first batch, before which all starts, is free."""
    batches = source.batches(steps, workers)
    next(batches)
    started = time.perf_counter()
    count = sum(len(batch.x) for batch in batches)
    synchronise(source.world.device)
    return count / (time.perf_counter() - started)


def consumed(stepper: Stepper, source: Source, steps: int) -> float:
    """Images per second that training steps take in when the data are there; the first step is free."""
    first, *others = source.batches(steps, None)
    stepper.take(first, 0, 0)
    synchronise(source.world.device)
    started = time.perf_counter()
    for step, batch in enumerate(others, 1):
        stepper.take(batch, step, 0)
    synchronise(source.world.device)
    return steps * len(first.x) / (time.perf_counter() - started)


def measure(source: Source, options: argparse.Namespace) -> list[list[str]]:
    inputs = source.inputs(options.steps, None)
    _, stepper = make_stepper(inputs, new_state(inputs))
    taken: list[float] = []
    given: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        taken.append(consumed(stepper, source, options.steps))
        for way, workers in WAYS.items():
            given[way].append(delivered(source, 10 * options.steps, workers))
    step = statistics.median(taken)
    rates = {way: statistics.median(measured) for way, measured in given.items()}
    name = f"{inputs.plan.method.objective}, {inputs.plan.method.source} source"
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
            world = join(options.device)
            own = Source(latents, gmm, load_preset("quickstart").config("train"), world)
            mixed = replace(own, config=changed(own.config, {"source": "gmm"}))
            rows = measure(own, options) + measure(mixed, options)
    title = f"{len(rows)} ways to {own.config.loop.batch_size} images per step, on {world.device}"
    print_table(title, ("loader", "delivered, images/s", "consumed, images/s", "ratio", "at least 5"), rows)


if __name__ == "__main__":
    main()
