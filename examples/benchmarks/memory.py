"""Train the quickstart's network for many steps and print the resident memory during training.

Memory is read between steps, every --every steps. What a process takes at first (libraries, buffers, the allocator's
pools) is not growth: the last figure is compared with that of a tenth of the run.

    python examples/benchmarks/memory.py --steps 20000
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from gmtool.console import print_table
from gmtool.data.digits import write_digits
from gmtool.progress import Progress
from gmtool.settings import changed
from gmtool.stages.encode.run import encode_images
from gmtool.stages.presets import load_preset
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.run import train
from gmtool.words import human_bytes


class MemoryLog(Progress):
    """Keeps the resident memory in bytes at multiples of ``every`` steps, and prints it."""

    def __init__(self, every: int) -> None:
        self._every, self._step, self._began = every, 0, time.monotonic()
        self.resident: dict[int, int] = {}

    def advance(self, count: int = 1, _figures: Mapping[str, float] | None = None) -> None:
        """See `Progress.advance`."""
        self._step += count
        if self._step % self._every == 0:
            gc.collect()
            self.resident[self._step] = resident_bytes()
            seconds = time.monotonic() - self._began
            print(f"step {self._step}: {human_bytes(self.resident[self._step])}, {seconds:.0f} s", flush=True)


def resident_bytes() -> int:
    """This process's resident memory (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--every", type=int, default=1000, help="steps between two readings")
    parser.add_argument("--batch-size", type=int, default=16, help="images per step; the quickstart takes 128")
    options = parser.parse_args()
    preset = load_preset("quickstart")
    log = MemoryLog(options.every)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, _ = write_digits(folder / "digits")
        encode_images(images, folder / "latents.h5", preset.config("encode"), Progress())
        budget = {"steps": options.steps, "batch_size": options.batch_size}
        config: TrainConfig = changed(preset.config("train"), budget)
        train(folder / "latents.h5", folder / "run", config, log)
    first = log.resident[min(step for step in log.resident if step >= options.steps / 10)]
    growth = log.resident[max(log.resident)] - first
    rows = [(f"{step:,}", human_bytes(size), human_bytes(size - first)) for step, size in log.resident.items()]
    print_table(f"batch {options.batch_size}, growth {human_bytes(growth)}", ("step", "resident", "growth"), rows)


if __name__ == "__main__":
    main()
