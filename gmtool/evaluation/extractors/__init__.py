"""The feature extractors of ``gmtool eval``, a file and a row each: choices, help, ``auto`` follow from `EXTRACTORS`.

To add one, write a module with the functions of `Family`, and a row that names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Protocol, cast

from gmtool.errors import MachineError, UserError
from gmtool.forecast import Choice
from gmtool.progress import Progress
from gmtool.settings import Option, Settings

if TYPE_CHECKING:
    import torch

    from gmtool.artifacts.latents import LatentsFile
    from gmtool.artifacts.tokenizer_spec import TokenizerSpec
    from gmtool.evaluation.features import Extractor

FETCH_SECONDS = 15.0
"""Time limit of an implicit download (--features auto), in seconds."""


class Family(Protocol):
    """What an extractor's module holds."""

    def prepare(self, settings: ExtractorSettings, patience: float | None, progress: Progress) -> str:
        """Have what it needs on this disk, and say in words where it is.

        patience: seconds that a download may take; 0 for none, which is then told in the answer; None for whatever it
        takes. Raises MachineError, with the repair, when it cannot be had, UserError for a wrong setting.
        """

    def feature_size(self, samples: LatentsFile) -> int:
        """D of a feature vector of images whose latents these are."""

    def open_extractor(
        self, settings: ExtractorSettings, tokenizer: TokenizerSpec, device: torch.device, progress: Progress
    ) -> Extractor:
        """The extractor, prepared before. tokenizer: of the run whose samples are scored."""


@dataclass(frozen=True)
class Row:
    """An extractor: its name on the command line, what it is in words, what it is for, and its module."""

    name: str
    title: str
    help: str
    module: str

    def load(self) -> Family:
        """The module, imported when it is used."""
        return cast(Family, import_module(self.module))


EXTRACTORS: tuple[Row, ...] = (
    Row(
        "inception",
        "Inception",
        "FID, IS, KID, precision, recall as published",
        "gmtool.evaluation.extractors.inception",
    ),
    Row(
        "tokenizer",
        "the run's own tokenizer",
        "the run's own descriptors, no download",
        "gmtool.evaluation.extractors.tokenizer",
    ),
)
"""In the order in which ``auto`` tries them."""

AUTO = "auto"


def _choices() -> tuple[str, ...]:
    return (AUTO, *(row.name for row in EXTRACTORS))


@dataclass(frozen=True)
class ExtractorSettings(Settings):
    """Which features images are compared by."""

    TITLE: ClassVar[str] = "Features"

    features: Annotated[
        str,
        Option(
            f"Feature extractor: {', '.join(f'{row.name} ({row.help})' for row in EXTRACTORS)}, auto (the first of "
            "these whose weights are on disk or download within seconds).",
            choices=_choices,
        ),
    ] = AUTO
    inception_weights: Annotated[
        Path | None,
        Option("File of the Inception weights that torch-fidelity uses. Default: its own download.", metavar="FILE"),
    ] = None

    def check(self) -> None:
        """See `Settings.check`."""
        if self.inception_weights is not None and self.features not in (AUTO, "inception"):
            raise UserError(
                f"--inception-weights has no effect with --features {self.features}: leave one of the two out"
            )

    @property
    def asked(self) -> str | None:
        """The extractor that the user named, also by its weights; None where it is to be chosen."""
        if self.features != AUTO:
            return self.features
        return None if self.inception_weights is None else "inception"


def extractor_row(name: str) -> Row:
    """The row of a name. Raises KeyError for another one."""
    found = {row.name: row for row in EXTRACTORS}
    return found[name]


def choose_extractor(
    settings: ExtractorSettings, progress: Progress, fetch: bool = True, patience: float = FETCH_SECONDS
) -> Choice:
    """Which extractor is used, and why: the one asked for, or with ``auto`` the first that can be had.

    fetch: whether missing weights are downloaded; those that nobody asked for within ``patience`` seconds. Raises
    MachineError when one was asked for and cannot be had.
    """
    if settings.asked is not None:
        why = extractor_row(settings.asked).load().prepare(settings, None if fetch else 0.0, progress)
        return Choice("--features", settings.asked, why)
    refusals: list[str] = []
    for row in EXTRACTORS:
        try:
            why = row.load().prepare(settings, patience if fetch else 0.0, progress)
        except MachineError as error:
            refusals.append(str(error))
            continue
        return Choice("--features", row.name, "; ".join([*refusals, why]))
    raise MachineError("; ".join(refusals))
