"""The feature extractors of ``gmtool eval``, a file and a row each: names, help and choices follow from `EXTRACTORS`.

To add one, write a module with the functions of `Family`, and a row that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Protocol, cast

from gmtool.errors import MachineError, UserError
from gmtool.forecast import Choice
from gmtool.progress import Progress
from gmtool.settings import Option, Settings

if TYPE_CHECKING:
    import torch

    from gmtool.artifacts.tokenizer_spec import TokenizerSpec
    from gmtool.distributed import World
    from gmtool.evaluation.features import Extractor
    from gmtool.evaluation.metrics import Row as MetricRow

FETCH_SECONDS = 15.0
"""Time limit of an implicit download (--features auto), in seconds."""


@dataclass(frozen=True, eq=False)
class Described:
    """The tokenizer of the latents that come with the images, and the size D of its descriptor."""

    tokenizer: TokenizerSpec
    size: int


class Family(Protocol):
    """What an extractor's module holds."""

    def prepare(self, settings: ExtractorSettings, patience: float | None, progress: Progress) -> str:
        """Have what it needs on this disk, and say in words where it is.

        patience: seconds that a download may take; 0 for none, which is then told in the answer; None for whatever it
        takes. Raises MachineError, with the repair, when it cannot be had, UserError for a wrong setting.
        """

    def feature_size(self, settings: ExtractorSettings, described: Described | None) -> int | None:
        """D of a feature vector; None where only the weights tell, which are not here yet."""

    def open_extractor(
        self, settings: ExtractorSettings, described: Described | None, device: torch.device, progress: Progress
    ) -> Extractor:
        """The extractor, prepared before. described: the tokenizer of the run whose samples are scored, if any."""


@dataclass(frozen=True)
class Row:
    """An extractor: its name on the command line, what it is in words, what it is for, and its module.

    module: "module" with the functions of `Family`, or "module:object" with its methods. weights: where its weights
    come from by default. metrics: the names of those metrics that are published on its
    features; empty for all. logits: how many it also gives, together with spatial features; 0 for neither.
    """

    name: str
    title: str
    help: str
    module: str
    weights: str
    metrics: tuple[str, ...] = ()
    logits: int = 0

    @property
    def classifies(self) -> bool:
        """Whether it also gives logits and spatial features."""
        return self.logits > 0

    def allows(self, metrics: MetricRow) -> bool:
        """Whether a row of metrics is meant for, and defined on, its features."""
        listed = not self.metrics or any(metric.name in self.metrics for metric in metrics.metrics)
        return listed and metrics.defined_on(self.name)

    def load(self) -> Family:
        """The module or object, imported when it is used."""
        module, _, name = self.module.partition(":")
        family = import_module(module)
        return cast(Family, getattr(family, name) if name else family)


TIMM = "gmtool.evaluation.extractors.timm_encoders"

EXTRACTORS: tuple[Row, ...] = (
    Row(
        "inception",
        "Inception",
        "FID, sFID, IS, KID, precision, recall as published",
        "gmtool.evaluation.extractors.inception",
        "torch-fidelity's download",
        logits=1008,
    ),
    Row(
        "dinov2",
        "DINOv2 ViT-L/14",
        "FD-DINOv2",
        "gmtool.evaluation.extractors.dinov2",
        "facebook/dinov2-large",
    ),
    Row(
        "clip",
        "CLIP ViT-L/14 at 336 px",
        "CMMD",
        "gmtool.evaluation.extractors.clip",
        "openai/clip-vit-large-patch14-336",
        metrics=("cmmd",),
    ),
    Row(
        "vgg16",
        "VGG16",
        "precision and recall as first published",
        "gmtool.evaluation.extractors.vgg16",
        "torchvision's download",
        metrics=("precision", "recall"),
    ),
    Row(
        "tokenizer",
        "the run's own tokenizer",
        "the run's own descriptors, no download",
        "gmtool.evaluation.extractors.tokenizer",
        "the latents file",
    ),
    Row(
        "fdr-convnext",
        "ConvNeXt V2-B by timm",
        "one of the six of FDr6",
        f"{TIMM}:CONVNEXT",
        "timm/convnextv2_base.fcmae_ft_in22k_in1k",
        metrics=("frechet_distance", "mind"),
    ),
    Row(
        "fdr-dinov2",
        "DINOv2 ViT-L/14 by timm",
        "one of the six of FDr6",
        f"{TIMM}:DINOV2",
        "timm/vit_large_patch14_dinov2.lvd142m",
        metrics=("frechet_distance", "mind"),
    ),
    Row(
        "fdr-mae",
        "MAE ViT-L/16 by timm",
        "one of the six of FDr6",
        f"{TIMM}:MAE",
        "timm/vit_large_patch16_224.mae",
        metrics=("frechet_distance", "mind"),
    ),
    Row(
        "fdr-siglip",
        "SigLIP 2 So400m/16 by timm",
        "one of the six of FDr6",
        f"{TIMM}:SIGLIP",
        "timm/vit_so400m_patch16_siglip_256.v2_webli",
        metrics=("frechet_distance", "mind"),
    ),
    Row(
        "fdr-clip",
        "CLIP ViT-L/14 by timm",
        "one of the six of FDr6",
        f"{TIMM}:CLIP",
        "timm/vit_large_patch14_clip_224.openai",
        metrics=("frechet_distance", "mind"),
    ),
)
"""In the order in which ``all`` shows them, with the hub ids of their published weights."""

AUTO, ALL = "auto", "all"

AUTOMATIC = ("inception", "tokenizer")
"""``auto`` uses the first of these that is available."""

FDR = tuple(row.name for row in EXTRACTORS if row.module.startswith(TIMM))
"""The extractors by timm."""

FDR6 = "fdr6"
"""The name of Inception and those by timm together, whose normalised distances FDr6 is the mean of."""

ON_REQUEST = ("vgg16", *FDR)
"""Extractors that ``all`` leaves out."""

LISTED = tuple(f"{row.name} ({row.help})" for row in EXTRACTORS if row.name not in FDR)
"""The help on each extractor."""


@dataclass(frozen=True)
class ExtractorSettings(Settings):
    """The features by which images are compared."""

    TITLE: ClassVar[str] = "Features"

    features: Annotated[
        str,
        Option(
            "Feature extractors, separated by commas: "
            f"{', '.join(LISTED)}, auto (the first of "
            f"{' and '.join(AUTOMATIC)} whose weights are on disk or download within seconds), all (every available one"
            f" of these but vgg16), {FDR6} (inception, {', '.join(FDR)}: their distances, MIND, and FDr6).",
            metavar="NAMES",
        ),
    ] = AUTO
    inception_weights: Annotated[
        Path | None,
        Option(
            "File of the Inception weights that torch-fidelity uses. Default: downloaded by torch-fidelity.",
            metavar="FILE",
        ),
    ] = None
    dinov2_weights: Annotated[
        str | None,
        Option(f"Hub id or folder of another DINOv2. Default: {extractor_row('dinov2').weights}.", metavar="ID|FOLDER"),
    ] = None
    clip_weights: Annotated[
        str | None,
        Option(f"Hub id or folder of another CLIP. Default: {extractor_row('clip').weights}.", metavar="ID|FOLDER"),
    ] = None
    vgg16_weights: Annotated[
        Path | None,
        Option("File of torchvision's VGG16 weights. Default: downloaded by torchvision.", metavar="FILE"),
    ] = None
    fdr_weights: Annotated[
        Path | None,
        Option(
            f"Folder with a folder, as timm saves networks, for each of {', '.join(FDR)}. Default: hub downloads.",
            metavar="FOLDER",
        ),
    ] = None

    def check(self) -> None:
        """See `Settings.check`."""
        known = [*(row.name for row in EXTRACTORS), FDR6]
        names = self._names
        if not self.automatic and names != (ALL,):
            for name in names:
                if name in (AUTO, ALL):
                    raise UserError(f"--features {name} stands alone: name the extractors, separated by commas")
                if name not in known:
                    raise UserError(f"--features must be one of {', '.join([AUTO, ALL, *known])}, not {name!r}")
            if len(set(self.asked)) < len(self.asked):
                raise UserError(f"--features {self.features} names an extractor twice: remove one")
        for name in self._with_weights:
            if name not in self.asked:
                raise UserError(f"--{name}-weights has no effect with --features {self.features}: remove one of them")
        if self.fdr_weights is not None and not set(FDR) & set(self.asked):
            raise UserError(f"--fdr-weights has no effect without --features {FDR6}: leave it out, or name them")

    @property
    def asked(self) -> tuple[str, ...]:
        """The extractors that the user named, also by their weights; empty where they are to be chosen."""
        if self._names == (ALL,):
            return tuple(row.name for row in EXTRACTORS if row.name not in ON_REQUEST)
        if not self.automatic:
            return tuple(one for name in self._names for one in (("inception", *FDR) if name == FDR6 else (name,)))
        return self._with_weights

    @property
    def automatic(self) -> bool:
        """Whether the first of `AUTOMATIC` that is available is used, unless weights name another."""
        return self._names == (AUTO,)

    @property
    def _names(self) -> tuple[str, ...]:
        """The names in ``features``."""
        return tuple(name.strip() for name in self.features.split(","))

    @property
    def _with_weights(self) -> tuple[str, ...]:
        """The extractors whose weights the user named."""
        given = {
            "inception": self.inception_weights,
            "dinov2": self.dinov2_weights,
            "clip": self.clip_weights,
            "vgg16": self.vgg16_weights,
        }
        return tuple(name for name, weights in given.items() if weights is not None)


def extractor_row(name: str) -> Row:
    """The row of a name. Raises KeyError for another one."""
    rows = {row.name: row for row in EXTRACTORS}
    return rows[name]


@dataclass(frozen=True)
class ChosenExtractors:
    """Which extractors are used, each with the reason; missing: a line on each that was asked for and is not there."""

    choices: tuple[Choice, ...]
    missing: tuple[str, ...] = ()


def choose_extractors(
    settings: ExtractorSettings,
    progress: Progress,
    fetch: bool = True,
    patience: float = FETCH_SECONDS,
    refused: Mapping[str, str] | None = None,
) -> ChosenExtractors:
    """Which extractors are used, and why: those asked for, or with ``auto`` the first that can be had.

    fetch: whether missing weights are downloaded; those that nobody asked for within ``patience`` seconds. refused:
    extractors that the images do not allow, and why. Raises MachineError when none can be had, UserError for a wrong
    setting.
    """
    asked = settings.asked
    choices: list[Choice] = []
    missing: list[str] = []
    for name in asked or AUTOMATIC:
        try:
            if refused and name in refused:
                raise MachineError(refused[name])
            limit = 0.0 if not fetch else None if asked else patience
            why = extractor_row(name).load().prepare(settings, limit, progress)
        except MachineError as error:
            missing.append(str(error))
            continue
        choices.append(Choice("--features", name, why if asked else "; ".join([*missing, why])))
        if not asked:
            return ChosenExtractors(tuple(choices))
    if not choices:
        raise MachineError("; ".join(missing))
    return ChosenExtractors(tuple(choices), tuple(missing))


def choose_together(
    settings: ExtractorSettings,
    progress: Progress,
    world: World,
    fetch: bool = True,
    refused: Mapping[str, str] | None = None,
) -> ChosenExtractors:
    """What `choose_extractors` chooses in the first process, prepared in every process.

    The others begin once the first one is done, so that they find what it fetched. Raises what `choose_extractors`
    does, MachineError also in a process that cannot have what was chosen.
    """
    told = None
    if world.first:
        chosen = choose_extractors(settings, progress, fetch, refused=refused)
        told = [[asdict(choice) for choice in chosen.choices], chosen.missing]
    choices, missing = world.tell(told)
    chosen = ChosenExtractors(tuple(Choice(**choice) for choice in choices), tuple(missing))
    for choice in () if world.first else chosen.choices:
        extractor_row(choice.value).load().prepare(settings, None if fetch else 0.0, progress)
    return chosen
