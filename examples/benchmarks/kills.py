"""kill -9 a training run at random moments, start it again each time, and compare with one that was left alone.

The run is the union of both papers on handwritten digits, with Muon, two averages and a checkpoint every few steps, so
that many a kill falls into the writing of one. Each start takes another number of data workers. A run that comes to its
end before all kills are used is followed by another one. In the end all files of the last checkpoints and all lines of
metrics must agree to the last bit.

    python examples/benchmarks/kills.py --kills 20
"""

from __future__ import annotations

import argparse
import itertools
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gmtool.console import print_table
from gmtool.data.digits import write_digits
from gmtool.training.checkpoint import Checkpoint, list_checkpoints

SETTINGS = [
    *("--objective", "gm-kl", "--source", "gmm", "--optimizer", "muon", "--ema", "0.99", "--ema-power", "0.1"),
    *("--batch-size", "16", "--save-every", "5", "--preview-every", "0", "--device", "cpu"),
]
WORKERS = ([], ["--workers", "0"], ["--workers", "1"], ["--workers", "2"])


def gmtool(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gmtool", *arguments]


def prepare(folder: Path) -> list[str]:
    """Make latents and a mixture; return the command that trains on them, less the run's folder."""
    images, _ = write_digits(folder / "digits")
    latents = str(folder / "latents.h5")
    common = ["--device", "cpu"]
    for stage in (
        gmtool("encode", str(images), latents, "--tokenizer", "pixels", "--patch-size", "2", *common),
        gmtool("fit-gmm", latents, str(folder / "gmm.h5"), "--modes", "16", *common),
    ):
        subprocess.run(stage, check=True, capture_output=True)
    return gmtool("train", latents)


def newest(run: Path) -> Checkpoint | None:
    found = list_checkpoints(run / "checkpoints")
    return found[-1] if found else None


def kill_once(command: list[str], run: Path, seconds: float) -> tuple[bool, tuple[str, ...] | None]:
    """Start the command and kill it after so many seconds.

    Returns whether it came to its end before that, and a row of the table of kills.
    """
    before = newest(run)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        after = newest(run)
        writing = "yes" if list((run / "checkpoints").glob("*.part")) else "no"
        return False, (f"{seconds:.2f}", str(before.step if before else 0), str(after.step if after else 0), writing)
    if process.returncode:
        raise SystemExit(f"the run failed: {process.communicate()[1]}")
    return True, None


def differences(first: Path, second: Path) -> list[str]:
    """Files of two finished runs that are not the same bytes."""
    names = {path.relative_to(first) for path in first.glob("checkpoints/*/*")} | {Path("metrics.jsonl")}
    return [str(name) for name in sorted(names) if (first / name).read_bytes() != (second / name).read_bytes()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    moments = random.Random(options.seed)
    rows: list[tuple[str, ...]] = []
    broken: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train = prepare(folder)
        settings = [*SETTINGS, "--steps", str(options.steps)]
        began = time.monotonic()
        subprocess.run([*train, str(folder / "whole"), *settings], check=True, capture_output=True)
        whole = time.monotonic() - began
        workers = itertools.cycle(WORKERS)
        for attempt in itertools.count():
            run, finished = folder / f"run-{attempt}", False
            while not finished:
                command = [*train, str(run), *settings, *next(workers)]
                if len(rows) == options.kills:
                    subprocess.run(command, check=True, capture_output=True)
                    break
                # from the start of the process, so that some fall before the first step
                finished, row = kill_once(command, run, moments.uniform(0, whole))
                rows += [row] if row else []
            broken += differences(folder / "whole", run)
            if len(rows) == options.kills:
                break
    columns = ("after s", "newest checkpoint before", "and after", "writing one")
    print_table(f"{options.kills} kills, {attempt + 1} runs of {options.steps} steps ({whole:.1f} s)", columns, rows)
    print(f"differ: {', '.join(broken)}" if broken else "every run ended with the same bytes as the one left alone")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
