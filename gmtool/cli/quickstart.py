"""``gmtool quickstart``: both methods on real handwritten digits, through the commands that a user types."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from gmtool.flags import with_options
from gmtool.settings import Device, Option, Seed, check_ranges

SOURCES = {"gmflow": "gaussian", "union": "gmm"}
"""The two runs, by the source of their noise: GMFlow, and its union with MM-FM."""

STEPS = (1, 2, 4, 6)
"""Numbers of network evaluations that samples are drawn with."""


@dataclass(frozen=True)
class QuickstartConfig:
    """How long the demonstration trains and how much it draws."""

    steps: Annotated[
        int | None,
        Option("Training steps of each run. Default: as in the preset quickstart.", metavar="N", minimum=1),
    ] = None
    num: Annotated[
        int | None,
        Option("Images to draw per set of samples. Default: as in the preset quickstart.", metavar="N", minimum=2),
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
    """Train GMFlow and the union on 1400 real handwritten digits and compare them, in minutes and with no download.

    Each command is printed before it runs; the last one writes a page with all results. Run the same command again to
    resume.

    Example: gmtool quickstart --steps 2000
    """
    from gmtool.artifacts.files import check_writable
    from gmtool.data.digits import write_digits
    from gmtool.stages.report.plan import check_page

    check_writable(folder, "the folder")
    page = folder / "report.html"
    if page.exists():
        check_page(page)
    training, held_out = write_digits(folder / "digits")
    print(f"wrote {training} and {held_out}: handwritten digits", flush=True)
    for arguments in _commands(folder, training, held_out, page, config):
        _run(context, arguments)
    print("\nthe score: the Fréchet distance of the samples, beside that of as many real digits in their place")
    print(f"open {page} in a browser: both runs at {', '.join(map(str, STEPS))} network evaluations beside real digits")


def _commands(
    folder: Path, training: Path, held_out: Path, page: Path, config: QuickstartConfig
) -> Iterator[list[str]]:
    """The commands, as a user would type them."""
    latents, gmm = str(folder / "latents.h5"), str(folder / "gmm.h5")
    common = ["--preset", "quickstart", "--device", config.device, "--seed", str(config.seed)]
    steps = [] if config.steps is None else ["--steps", str(config.steps)]
    num = [] if config.num is None else ["--num", str(config.num)]
    yield ["encode", str(training), latents, *common]
    yield ["fit-gmm", latents, gmm, *common]
    for run, source in SOURCES.items():
        yield ["train", latents, str(folder / run), "--source", source, *steps, *common]
    samples = []
    for run in SOURCES:
        for evaluations in STEPS:
            samples.append(str(folder / f"{run}-{evaluations}"))
            yield ["sample", str(folder / run), samples[-1], "--steps", str(evaluations), *num, *common]
    yield ["eval", *samples, "--reference", str(held_out), *common]
    yield ["report", str(folder), str(page), "--title", "GMFlow and the union on handwritten digits"]


def _run(context: typer.Context, arguments: list[str]) -> None:
    """Print one command and run it; its errors are those of the quickstart."""
    app = context.find_root()
    print(f"\n$ {app.info_name} {shlex.join(arguments)}", flush=True)
    code = app.command.main(args=arguments, prog_name=app.info_name, standalone_mode=False)
    if code:
        raise typer.Exit(code)
