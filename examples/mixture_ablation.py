"""MM-FM's ablation of the source (CVPR 2026), its number of modes and their covariance, as a chain of commands.

For each number of modes a mixture is fitted and a run is trained from it, for 0 modes from a Gaussian; at one number of
modes the covariance is also spherical, and the assignment hard. One sweep then scores all runs by Euler's method at
several numbers of steps, from several sampling seeds: its table is the ablation, its plot has a line per run. Each
command is printed before it runs, and the same call resumes where it was stopped. Published, on ImageNet 256 after 20
epochs, FID as read off the figure: 0 modes 15.0, 8 13.1, 64 10.4, 1024 6.7, 8192 5.8; at 64 modes spherical 11.1,
diagonal 10.4, hard 10.7, and full covariance, which gmtool does not fit, 10.1.

    python examples/mixture_ablation.py --print               # the commands alone
    python examples/mixture_ablation.py                       # on the embedded digits
    python examples/mixture_ablation.py ablation --latents latents.h5 --reference validation/ \\
        --modes 0,8,64,1024,8192 --at 64 --train "--preset mm-fm-imagenet256 --steps 25000" \\
        --sweep "--preset sweep-steps-mm-fm --decoder DECODER"
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gmtool.cli.app import main as gmtool
from gmtool.data.digits import write_digits

TRAIN = "--model tiny --condition none --steps 1500 --batch-size 128 --lr-knots 100%:0 --lr-curve cosine"
TRAINING, HELD_OUT = Path("digits/train"), Path("digits/held-out")
SWEEP = "--steps 2,5,10,25 --num 700 --features tokenizer"


@dataclass(frozen=True)
class Source:
    """A source of the flow: its name, its number of modes, 0 for a Gaussian, and the flags of its fit."""

    name: str
    modes: int
    fit: tuple[str, ...] = ()


def sources(modes: list[int], at: int) -> list[Source]:
    """Every number of modes with diagonal covariance and soft assignment; and at one number the alternatives."""
    compared = [Source(f"modes-{count}" if count else "gaussian", count) for count in modes]
    compared.append(Source(f"spherical-{at}", at, ("--covariance", "spherical")))
    compared.append(Source(f"hard-{at}", at, ("--assignment", "hard")))
    return compared


def commands(folder: Path, latents: Path, options: argparse.Namespace) -> Iterator[list[str]]:
    """The chain, as a user would type it after ``gmtool``."""
    device, runs = ["--device", options.device], []
    if options.latents is None:
        yield ["encode", str(folder / TRAINING), str(latents), "--tokenizer", "pixels", "--patch-size", "2", *device]
    for source in sources(options.modes, options.at):
        run, gmm = folder / "runs" / source.name, folder / f"{source.name}.h5"
        chosen = ["--objective", "fm", "--source", "gaussian"]
        if source.modes:
            chosen = ["--objective", "mm-fm", "--gmm", str(gmm)]
            yield ["fit-gmm", str(latents), str(gmm), "--modes", str(source.modes), *source.fit, *device]
        yield ["train", str(latents), str(run), *shlex.split(options.train), *chosen, *device]
        runs.append(str(run))
    reference = [] if options.reference is None else ["--reference", str(options.reference)]
    sweep = ["--solver", "euler", "--seeds", str(options.seeds), *shlex.split(options.sweep), *reference, *device]
    yield ["sweep", *runs, "--output", str(folder / "sweep"), *sweep]


def run(arguments: list[str]) -> None:
    """Print one command and run it."""
    print(f"\n$ gmtool {shlex.join(arguments)}", flush=True)
    code = gmtool(arguments)
    if code:
        sys.exit(code)


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("mixture-ablation"), help="all that is made")
    parser.add_argument("--latents", type=Path, help="what gmtool encode wrote; default: of the digits")
    parser.add_argument("--reference", type=Path, help="real images; default: those of the latents")
    parser.add_argument("--modes", type=numbers, default=numbers("0,8,32,128"), help="0 is a Gaussian source")
    parser.add_argument("--at", type=int, default=32, help="modes of the ablation of covariance and assignment")
    parser.add_argument("--train", default=TRAIN, help="flags of gmtool train")
    parser.add_argument("--sweep", default=SWEEP, help="flags of gmtool sweep")
    parser.add_argument("--seeds", type=int, default=3, help="sampling seeds")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--print", action="store_true", help="print the commands, and run none")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    latents = options.latents or options.folder / "latents.h5"
    if options.latents is None:
        options.reference = options.reference or options.folder / HELD_OUT
        if not options.print:
            write_digits(options.folder / "digits")
    for command in commands(options.folder, latents, options):
        if options.print:
            print(f"gmtool {shlex.join(command)}")
        else:
            run(command)


if __name__ == "__main__":
    main()
