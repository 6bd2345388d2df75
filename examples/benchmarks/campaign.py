"""A fault-injection campaign: what users, disks and schedulers do to the commands, generated at random and counted.

flags    commands with flags and values generated from their declared options
bytes    a flipped bit in each file of each artifact, which is then read whole
hostile  malicious and broken pickles and archives
kills    kill -9 at random moments of each stage, then the same command until it finishes
pairs    the same command twice at once, for each stage

A command must succeed, or fail with exit code 1 or 2 and one line that says why. It must never end by a signal or in a
traceback, give other numbers than an undisturbed run, or remove a file of the user's. Every command runs in a forked
process, which saves it the imports.

    python examples/benchmarks/campaign.py                    # all of it, minutes
    python examples/benchmarks/campaign.py flags --cases 50 --seed 3
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import select
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import campaign_files
import typer
from campaign_world import (
    CHAIN,
    DISTILL,
    ENCODE,
    EVAL,
    FIT,
    READERS,
    SAMPLE,
    SECONDS,
    SWEEP,
    THESIS,
    TRAIN,
    TRAIN_DECODER,
    Child,
    build,
    content_of,
    copy_before,
    copy_of,
    forked,
    leftovers,
    missing_thesis,
    undisturbed,
    words,
)

from gmtool.cli.app import app
from gmtool.console import print_table
from gmtool.errors import UserError
from gmtool.foreign.mixtures import read_mixture
from gmtool.settings import settings_of
from gmtool.stages.presets import STAGES


def clocks() -> tuple[float, float]:
    """The wall's clock and the processor time of all commands so far, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic(), used.ru_utime + used.ru_stime


@dataclass
class Tally:
    """What came of the cases of a campaign. faults: a line each."""

    name: str
    done: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)
    began: tuple[float, float] = field(default_factory=clocks)

    def add(self, case: str, fault: str | None, refused: bool = False) -> None:
        """Count a case; a fault is printed at once."""
        self.done += fault is None and not refused
        self.refused += fault is None and refused
        if fault is not None:
            self.faults.append(f"{self.name}: {case[:300]}: {fault[:500]}")
            print(self.faults[-1], file=sys.stderr, flush=True)

    def row(self) -> tuple[str, ...]:
        """A row of the table."""
        counts = (self.done + self.refused + len(self.faults), self.done, self.refused, len(self.faults))
        seconds = (f"{now - then:.0f}" for now, then in zip(clocks(), self.began, strict=True))
        return self.name, *map(str, counts), *seconds


# --- flags ------------------------------------------------------------------------------------------------------------

PLAIN_DECODER = ("--perceptual", "none", "--adversarial", "none", "--workers", "0", "--device", "cpu")
RECONSTRUCT = words("--decoder decoder --features tokenizer --perceptual none --limit 4 --workers 0 --device cpu")
BASES: Mapping[str, Sequence[str]] = {
    "encode": ("digits", "new.h5", *ENCODE[3:]),
    "fit-gmm": ("latents.h5", "new.h5", *FIT[3:]),
    "train": ("latents.h5", "new", "--steps", "2", "--batch-size", "4", "--model", "tiny", *TRAIN[-3:]),
    "sample": ("run", "new", *SAMPLE[3:]),
    "eval": ("samples", *EVAL[2:]),
    "import": ("latents.h5", "new"),
    "inspect": ("run",),
    "distill": ("run", "new", "--steps", "2", "--batch-size", "4", *DISTILL[-3:]),
    "sweep": ("run", "new", "--steps", "1", "--num", "4", *SWEEP[-4:]),
    "likelihood": ("digits", "run", "--num", "2", "--tolerance", "0.1", "--device", "cpu"),
    "report": (".", "new.html"),
    "train-decoder": ("digits", "new", *TRAIN_DECODER[3:10], "--steps", "2", *PLAIN_DECODER),
    "reconstruct": ("digits", "new", *RECONSTRUCT),
}
HEAVY = {"compile", "model", "wandb", "shard", "decoder", "descriptor", "size", "perceptual"}
"""Options that are only tried on a dry run: they take long, or ask the network."""
TEXTS = (
    "",
    "x",
    "-",
    "0",
    "nan",
    "run",
    "latents.h5",
    "gmm.h5",
    "missing.h5",
    "digits",
    THESIS,
    "/dev/null",
    "a" * 300,
)
NUMBERS = ("0", "1", "2", "3", "-1", "0.5", "1e-30", "nan", "inf", "-inf", "1e400", "9" * 30, "x", "")


def values_of(option: object, declared: object, rng: random.Random) -> list[str]:
    """Words that follow an option's flag, as its type and its declared range suggest."""
    kind = option.type.name  # type: ignore[attr-defined]
    pool: list[str] = list(TEXTS)
    if kind == "choice":
        pool = [*map(str, option.type.choices), *map(str, option.type.choices), "nonsense"]  # type: ignore[attr-defined]
    elif "int" in kind or "float" in kind or kind == "tuple":
        ends = [getattr(declared, name, None) for name in ("minimum", "maximum", "below")]
        near = [f"{end + step:g}" for end in ends if end is not None for step in (-1, 0, 1) if abs(end) < 100]
        pool = [*NUMBERS, *near, *near]
    return [rng.choice(pool) for _ in range(option.nargs)]  # type: ignore[attr-defined]


def flag_case(rng: random.Random) -> list[str]:
    """A command with up to three of its options."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    name = rng.choice([command for command in sorted(commands) if command not in ("quickstart", "bench")])
    options = [option for option in commands[name].params if option.param_type_name == "option"]
    declared = settings_of(STAGES[name]) if name in STAGES else {}
    chosen = rng.sample(options, min(len(options), rng.randint(1, 3)))
    typed: list[str] = []
    for option in chosen:
        typed.append(rng.choice([*option.opts, *option.secondary_opts]))
        if not option.is_flag:
            setting = declared.get(option.name)
            typed += values_of(option, None if setting is None else setting.option, rng)
    has_dry_run = any(option.name == "dry_run" for option in options)
    dry = ["--dry-run"] if has_dry_run and (rng.random() < 0.5 or {option.name for option in chosen} & HEAVY) else []
    return [name, *BASES.get(name, ("samples",)), *dry, *typed]


def flags(world: Path, cases: int, seed: int) -> Tally:
    """Generated commands."""
    tally, rng = Tally("flags"), random.Random(seed)
    copy = copy_of(world)
    for _ in range(cases):
        arguments = flag_case(rng)
        ending = Child(arguments, copy).wait()
        tally.add(" ".join(arguments), ending.fault() or missing_thesis(copy), refused=ending.code != 0)
        if missing_thesis(copy) or "--dry-run" not in arguments:
            shutil.rmtree(copy.parent)
            copy = copy_of(world)
    return tally


# --- bytes ------------------------------------------------------------------------------------------------------------


NO_NUMBERS = ("lock", ".png", ".csv", ".jsonl", "metrics.json", "events")
"""Files of an artifact that nothing reads numbers from."""
OF_ANY_RUN = {"state.json", "model.safetensors", "ema.safetensors", "optimizer.safetensors"}
"""Files of a checkpoint that a decoder's training writes and reads as any other does."""


def targets(world: Path) -> Iterator[tuple[str, Path]]:
    """The files of artifacts: the artifact's name, the file; of checkpoints the newest."""
    for name in READERS:
        inside = [world / name] if (world / name).is_file() else sorted((world / name).rglob("*"))
        newest = max((path.name for path in (world / name).glob("checkpoints/*")), default="")
        for path in inside:
            if (
                path.is_file()
                and not path.name.endswith(NO_NUMBERS)
                and not ("step-" in str(path) and newest not in str(path))
                and not (name == "decoder" and path.name in OF_ANY_RUN)
            ):
                yield name, path


def flips(world: Path, cases: int, seed: int) -> Tally:
    """A flipped byte in each file, ``cases`` times."""
    tally, rng = Tally("bytes"), random.Random(seed)
    copy = copy_of(world)
    for name, path in targets(copy):
        reading, writing = os.pipe()
        places = [(rng.randrange(path.stat().st_size), 1 << rng.randrange(8)) for _ in range(cases)]
        pid = forked(lambda: flip_each(copy / name, READERS[name], path, places, writing))  # noqa: B023
        os.close(writing)
        outcomes = read_all(reading).split("\n")[:-1]
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for (place, bit), outcome in zip(places, outcomes, strict=False):
            fault = None if outcome in ("same", "refused") else outcome
            tally.add(f"{path.relative_to(copy)} byte {place} bit {bit}", fault, outcome == "refused")
        if len(outcomes) < len(places) or code:
            tally.add(f"{path.relative_to(copy)} {places[len(outcomes) : len(outcomes) + 1]}", f"ended with {code}")
    return tally


def flip_each(
    artifact: Path, read: Callable[[Path], str], path: Path, places: Sequence[tuple[int, int]], to: int
) -> int:
    """Read the artifact with each of the flips; write a line on each to a pipe."""
    right, content = read(artifact), path.read_bytes()
    for place, bit in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        try:
            outcome = "same" if read(artifact) == right else "other numbers"
        except UserError as error:
            outcome = "refused" if "\n" not in str(error) else "several lines"
        except Exception as error:
            outcome = repr(error).replace("\n", " ")
        os.write(to, f"{outcome}\n".encode())
    path.write_bytes(content)
    return 0


def read_all(pipe: int, seconds: float = 5 * SECONDS) -> str:
    """What comes out of a pipe until it is closed."""
    received, ends = b"", time.monotonic() + seconds
    while select.select([pipe], [], [], max(0.0, ends - time.monotonic()))[0] and (part := os.read(pipe, 65536)):
        received += part
    os.close(pipe)
    return received.decode(errors="replace")


# --- hostile files ----------------------------------------------------------------------------------------------------


def with_pickle(world: Path, name: str, rng: random.Random) -> list[str]:
    """A command that reads a file of torch or pickle."""
    decoder = ["train-decoder", "digits", "new", *TRAIN_DECODER[3:10], "--steps", "1"]
    judge = ["reconstruct", "digits", "new", *RECONSTRUCT]
    readers = (
        ["import", name, "new", "--dry-run"],
        [*decoder, *PLAIN_DECODER[:2], *PLAIN_DECODER[4:], "--discriminator-weights", name],
        [*decoder, *PLAIN_DECODER[2:], "--lpips-weights", name],
        [*decoder[:8], *PLAIN_DECODER, "--init", name, "--dry-run"],
        [*judge, "--perceptual", "auto", "--lpips-weights", name],
        [*judge, "--statistics", name],
        [*judge, "--decoder", name, "--tokenizer", "encoder", "--image-size", "32"],
    )
    return in_world(world, rng.choice(readers))


def with_archive(world: Path, name: str, rng: random.Random) -> list[str]:
    """A command that reads an archive of images."""
    readers = (
        ["encode", name, "new.h5", *ENCODE[3:], *(["--skip-bad"] if rng.random() < 0.5 else [])],
        ["eval", name, "--reference", "digits", "--features", "tokenizer", "--device", "cpu"],
        ["likelihood", name, "run", *BASES["likelihood"][2:]],
        ["reconstruct", name, "new", *RECONSTRUCT, *(["--skip-bad"] if rng.random() < 0.5 else [])],
        ["train-decoder", name, "new", *TRAIN_DECODER[3:10], "--steps", "2", *PLAIN_DECODER],
    )
    return in_world(world, rng.choice(readers))


def in_world(world: Path, arguments: Sequence[str]) -> list[str]:
    """Arguments whose names of things in the world lead there."""
    return [str(world / word) if word in ("digits", "run", "decoder", "encoder") else word for word in arguments]


def hostile(world: Path, cases: int, seed: int) -> Tally:
    """Half pickles, half archives, each to a command that reads such files."""
    tally, rng = Tally("hostile"), random.Random(seed)
    for index in range(cases):
        folder = Path(tempfile.mkdtemp(dir=world.parent)) / "inside"
        folder.mkdir()
        make, command = (
            (lambda: campaign_files.pickled(rng), with_pickle),
            (lambda: campaign_files.archive(rng, world / "digits"), with_archive),
        )[index % 2]
        name, content = make()
        (folder / name).write_bytes(content)
        arguments = command(world, name, rng)
        ending = Child(arguments, folder).wait()
        shutil.rmtree(folder / "new", ignore_errors=True)
        known = {"inside", name, "new.h5", f"{name}.metrics.json", "likelihood.json"}
        left = {file.name for file in folder.parent.rglob("*")} - known
        fault = ending.fault() or (f"made {sorted(left)}" if left else None)
        if index % 2 == 0:
            fault = fault or as_mixture(folder / name)
        tally.add(f"case {index} of seed {seed}: {' '.join(arguments)}", fault, refused=ending.code != 0)
        shutil.rmtree(folder.parent)
    return tally


def as_mixture(path: Path) -> str | None:
    """What is wrong with how a file is read as a scikit-learn mixture, in a process of its own."""

    def act() -> int:
        os.chdir(path.parent)
        try:
            read_mixture(path)
        except UserError as error:
            return int("\n" in str(error))
        return 0

    pid = forked(act)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    left = {file.name for file in path.parent.iterdir()} - {path.name}
    return f"as a mixture: {code}, made {left}" if code or left else None


# --- kills and pairs --------------------------------------------------------------------------------------------------


def kills(world: Path, cases: int, seed: int) -> Tally:
    """``cases`` kills of each stage."""
    tally, rng = Tally("kills"), random.Random(seed)
    for stage in CHAIN:
        arguments, output = CHAIN[stage]
        alone, left = undisturbed(world, stage), cases
        while left:
            copy, moments = copy_before(world, stage), []
            while left:
                moments.append(rng.uniform(0, alone.seconds))
                if not Child(arguments, copy).wait(moments[-1]).late:
                    break
                left -= 1
            fault = Child(arguments, copy).wait().fault(0)
            if fault is None and content_of(copy / output) != alone.content:
                fault = "other content"
            tally.add(
                f"{stage} killed after {', '.join(f'{moment:.2f}' for moment in moments)} s", fault or leftovers(copy)
            )
    return tally


def pairs(world: Path, cases: int, _seed: int) -> Tally:
    """Two processes at once, ``cases`` times in each stage."""
    tally = Tally("pairs")
    for stage in CHAIN:
        arguments, output = CHAIN[stage]
        alone = undisturbed(world, stage)
        for _ in range(cases):
            copy = copy_before(world, stage)
            both = [Child(arguments, copy) for _ in range(2)]
            endings = [child.wait() for child in both]
            fault = next((wrong for ending in endings if (wrong := ending.fault(0, 2))), None)
            if not fault and any(ending.code and " by process " not in ending.said for ending in endings):
                fault = "the second does not say who is at it"
            if not fault and all(ending.code for ending in endings):
                fault = "neither finished"
            if not fault and content_of(copy / output) != alone.content:
                fault = "other content"
            tally.add(f"two {stage}", fault or leftovers(copy), refused=any(ending.code for ending in endings))
    return tally


PARTS: Mapping[str, tuple[Callable[[Path, int, int], Tally], int, int]] = {
    "flags": (flags, 300, 40),
    "bytes": (flips, 200, 15),
    "hostile": (hostile, 50, 12),
    "kills": (kills, 20, 2),
    "pairs": (pairs, 3, 1),
}
"""The parts, and how many cases each has, in full and in miniature: in all, a file, in all, a stage, a stage."""


COLUMNS = ("part", "cases", "succeeded", "refused", "faults", "seconds", "CPU seconds")


def run_all() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument(
        "--cases", type=int, help="of each part (of each file for bytes, of each stage for kills, pairs)"
    )
    parser.add_argument("--small", action="store_true", help="a few cases of each part, as the tests run it")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", OMP_NUM_THREADS="1")
    rows, faults = [], 0
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = name
        world = build(Path(name))
        for part in options.parts or PARTS:
            campaign, cases, few = PARTS[part]
            tally = campaign(world, options.cases or (few if options.small else cases), options.seed)
            rows.append(tally.row())
            faults += len(tally.faults)
    print_table(f"Fault injection, seed {options.seed}", COLUMNS, rows)
    sys.exit(bool(faults))


if __name__ == "__main__":
    run_all()
