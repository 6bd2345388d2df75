"""``gmtool quickstart``: the five stages on real handwritten digits, through the commands that a user types."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from gmtool.flags import with_options
from gmtool.settings import Device, Option, Seed, check_ranges


@dataclass(frozen=True)
class QuickstartConfig:
    """Length of the training and number of samples."""

    steps: Annotated[
        int | None, Option("Training steps. Default: that of the preset quickstart.", metavar="N", minimum=1)
    ] = None
    num: Annotated[
        int | None,
        Option("Number of images to sample. Default: that of the preset quickstart.", metavar="N", minimum=2),
    ] = None
    device: Device = "auto"
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_ranges(self)


@with_options(QuickstartConfig)
def command(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write.")] = Path("quickstart"),
    *,
    config: QuickstartConfig,
) -> None:
    """Run all five stages on 1797 real handwritten digits, in a few minutes and with no download.

    Each command is printed before it runs. Run the same command again to resume.

    Example: gmtool quickstart --steps 2000
    """
    from gmtool.artifacts.files import check_writable
    from gmtool.data.digits import write_digits

    check_writable(folder, "the folder")
    training, held_out = write_digits(folder / "digits")
    print(f"wrote {training} and {held_out}: handwritten digits", flush=True)
    for arguments in _commands(folder, training, held_out, config):
        _run(context, arguments)
    print(f"\nlook at {folder / 'samples' / 'grid.png'}, and at the previews in {folder / 'run' / 'previews'}")
    print("the score: the Fréchet distance of the samples, beside that of as many real digits (1x is perfect)")
    print(
        f"next, the union of both papers: gmtool train {folder / 'latents.h5'} {folder / 'union'} --preset quickstart "
        "--source gmm"
    )


def _commands(folder: Path, training: Path, held_out: Path, config: QuickstartConfig) -> list[list[str]]:
    """The five commands, as a user would type them."""
    latents, gmm, run, samples = (str(folder / name) for name in ("latents.h5", "gmm.h5", "run", "samples"))
    common = ["--preset", "quickstart", "--device", config.device, "--seed", str(config.seed)]
    steps = [] if config.steps is None else ["--steps", str(config.steps)]
    num = [] if config.num is None else ["--num", str(config.num)]
    return [
        ["encode", str(training), latents, *common],
        ["fit-gmm", latents, gmm, *common],
        ["train", latents, run, *steps, *common],
        ["sample", run, samples, *num, *common],
        ["eval", samples, "--reference", str(held_out), *common],
    ]


def _run(context: typer.Context, arguments: list[str]) -> None:
    """Print one command and run it; its errors are those of the quickstart."""
    app = context.find_root()
    print(f"\n$ {app.info_name} {shlex.join(arguments)}", flush=True)
    code = app.command.main(args=arguments, prog_name=app.info_name, standalone_mode=False)
    if code:
        raise typer.Exit(code)
