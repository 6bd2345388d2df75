"""The method that settings come to for given data."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gmtool.artifacts.method_record import MethodRecord
from gmtool.errors import UserError
from gmtool.flow.names import Condition, CouplingName, SourceName
from gmtool.flow.times import shift_for
from gmtool.forecast import Choice
from gmtool.training.settings import MethodSettings


def resolve_method(
    settings: MethodSettings, shape: Sequence[int], classes: int, mixture: str | None
) -> tuple[MethodRecord, tuple[Choice, ...]]:
    """The method for latents (C, H, W) with so many classes, and what was chosen for ``auto``, with the reason.

    mixture: the fitted mixture that is at hand, in words; None for none. Raises UserError for what the data cannot
    serve.
    """
    published = settings.objective == "mm-fm"
    source, coupling = _source(settings), _coupling(settings)
    condition, why = _condition(settings, classes, mixture)
    whitened = settings.objective == "gm-kl" and source == "gmm"
    record = MethodRecord(
        objective="fm" if published else settings.objective,  # type: ignore[arg-type]  # narrowed by the line itself
        source=source,
        coupling=coupling,
        condition=condition,
        # whitened coordinates do not tell where in the data they are: the mode's mean does
        mode_mean=whitened if settings.mode_mean is None else settings.mode_mean,
        transition_ratio=0.5 if settings.transition_ratio is None else settings.transition_ratio,
        time_distribution=settings.time_distribution,
        time_shift=shift_for(math.prod(shape)) if settings.time_shift is None else settings.time_shift,
        dropout=settings.dropout,
    )
    _check(settings, record, classes, mixture)
    if settings.condition != "auto":
        return record, ()
    return record, (Choice("--condition", condition, why),)


def _source(settings: MethodSettings) -> SourceName:
    if settings.source != "auto":
        return settings.source
    return "gmm" if settings.objective == "mm-fm" or settings.coupling == "mode" else "gaussian"


def _coupling(settings: MethodSettings) -> CouplingName:
    if settings.coupling != "auto":
        return settings.coupling
    mixture_flow = settings.objective == "gm-kl" and _source(settings) == "gmm"
    return "mode" if settings.objective == "mm-fm" or mixture_flow else "independent"


def _condition(settings: MethodSettings, classes: int, mixture: str | None) -> tuple[Condition, str]:
    """The condition, and why."""
    if settings.condition != "auto":
        return settings.condition, "as asked"
    if settings.objective == "mm-fm":
        return "none", "as published for mm-fm"
    if classes > 1:
        return "class", f"the images come in {classes:,} classes"
    if mixture is not None:
        return "mode", f"the images have no classes, and {mixture} is there"
    return "none", "the images have no classes, and no fitted mixture is there"


def _check(settings: MethodSettings, record: MethodRecord, classes: int, mixture: str | None) -> None:
    """Raise UserError, naming the flag, where the data cannot serve the method."""
    if record.condition == "class" and not classes:
        raise UserError("--condition class: the images had no class folders; use mode or none")
    if settings.focal and not record.uses_modes:
        raise UserError("--focal weighs modes, and this run knows none: use --source gmm or --condition mode")
    if record.mode_mean and not record.sees_modes:
        raise UserError(
            "--mode-mean shows the network what it knows of a mode: use --condition mode, or gm-kl on --source gmm"
        )
    if record.uses_modes and mixture is None:
        wanted = "--source gmm" if record.source == "gmm" else "--condition mode"
        raise UserError(f"{wanted} needs a fitted mixture: run gmtool fit-gmm, or give it by --gmm")
