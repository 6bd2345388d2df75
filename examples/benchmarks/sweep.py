"""A sweep of 24 points beside 24 calls of sample and eval, in one run; and the same sweep, killed on the way.

The run is GMFlow on handwritten digits. The sweep has 4 numbers of steps, with and without guidance, and 3 seeds. It
is timed as a user starts it, and so are the commands that its table names for its points: by the clock, and by the
processors' time, which other work on the machine disturbs less. Every command's figures must be the table's. Then the
sweep is started again in another folder, killed with SIGKILL at random moments and resumed; all files must be the same
bytes.

    python examples/benchmarks/sweep.py                       # trains first
    python examples/benchmarks/sweep.py --calls 6 --kills 5   # times 6 of the 24 points, evenly spaced
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from gmtool.console import print_table
from gmtool.data.digits import write_digits
from gmtool.evaluation.report import parse_report
from gmtool.evaluation.sweep_table import SweepPoint, read_sweep

GRID = [
    *("--steps", "1,2,4,8", "--guidance", "none,prob", "--guidance-scale", "0.1", "--seeds", "3"),
    *("--features", "tokenizer", "--device", "cpu"),
]
POINTS = 24


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock, and of the processors."""

    wall: float
    cpu: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.cpu + other.cpu)

    def times(self, factor: float) -> Cost:
        """The cost of so many times the work."""
        return Cost(self.wall * factor, self.cpu * factor)


def gmtool(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gmtool", *arguments]


def timed(command: list[str], folder: Path) -> Cost:
    """Run a command and tell what it took."""
    before, began = os.times(), time.monotonic()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(time.monotonic() - began, cpu)


def prepare(folder: Path, steps: int) -> None:
    """Make latents and a run."""
    write_digits(folder / "digits")
    for arguments in (
        ["encode", "digits/train", "latents.h5", "--tokenizer", "pixels", "--patch-size", "2", "--device", "cpu"],
        ["train", "latents.h5", "run", "--objective", "gm-kl", "--steps", str(steps), "--preview-every", "0"],
    ):
        subprocess.run(gmtool(*arguments), cwd=folder, check=True, capture_output=True)


def call(point: SweepPoint, folder: Path) -> Cost:
    """Draw and score a point by its own two commands. Raises SystemExit where the figures are others."""
    total = Cost(0.0, 0.0)
    for command in point.command.split(" && "):
        total += timed([sys.executable, "-m", *shlex.split(command)], folder)
    samples = re.search(r"samples-\w+", point.command)
    assert samples is not None
    report = parse_report((folder / samples.group() / "metrics.json").read_text())
    if report.figures != point.figures:
        raise SystemExit(f"other figures than the table's: {point.command}")
    return total


def killed(command: list[str], folder: Path, kills: int, seconds: float, moments: random.Random) -> int:
    """Run a command to its end, killing it so often at random moments; return how often it was."""
    done = 0
    for _ in range(kills):
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(moments.uniform(0.2, 0.6) * seconds)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            done += 1
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return done


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training-steps", type=int, default=400)
    parser.add_argument("--num", type=int, default=300, help="samples of a point")
    parser.add_argument("--calls", type=int, default=POINTS, help="points that are also drawn by their commands")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.training_steps)
        grid = [*GRID, "--num", str(options.num), "--reference", "digits/held-out"]
        whole = timed(gmtool("sweep", "run", "sweep", *grid), folder)
        points = read_sweep(folder / "sweep").points
        assert len(points) == POINTS
        chosen = points[:: -(-POINTS // options.calls)]
        print(f"one sweep: {whole.wall:.1f} s by the clock, {whole.cpu:.1f} s of the processors", flush=True)
        calls = Cost(0.0, 0.0)
        for number, point in enumerate(chosen, 1):
            calls += call(point, folder)
            print(f"{number} of {len(chosen)} points: {calls.wall:.1f} s, {calls.cpu:.1f} s", flush=True)
        calls = calls.times(POINTS / len(chosen))
        print_table(
            f"{POINTS} points of {options.num} samples; seconds of the commands from {len(chosen)} points",
            ("", "wall s", "processor s"),
            [
                ("one sweep", f"{whole.wall:.1f}", f"{whole.cpu:.1f}"),
                (f"{POINTS} x sample and eval", f"{calls.wall:.1f}", f"{calls.cpu:.1f}"),
                ("ratio", f"{calls.wall / whole.wall:.1f}", f"{calls.cpu / whole.cpu:.1f}"),
            ],
        )
        moments = random.Random(options.seed)
        kills = killed(gmtool("sweep", "run", "cut", *grid), folder, options.kills, whole.wall, moments)
        same = content(folder / "cut") == content(folder / "sweep")
    print(f"killed {kills} times on the way: {'the same bytes' if same else 'OTHER BYTES'}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
