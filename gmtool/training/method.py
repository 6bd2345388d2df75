"""The method that settings resolve to for given data."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gmtool.artifacts.method_record import MethodRecord
from gmtool.errors import UserError
from gmtool.flow.method import coordinates_of
from gmtool.flow.names import Condition, CouplingName, SourceName
from gmtool.flow.times import shift_for
from gmtool.forecast import Choice
from gmtool.training.settings import MethodSettings


def resolve_method(
    settings: MethodSettings,
    shape: Sequence[int],
    classes: int,
    mixture: str | None,
    latents: str = "LATENTS",
    spectral: bool = False,
) -> tuple[MethodRecord, tuple[Choice, ...]]:
    """The method for latents of ``shape`` (C, H, W), and what was chosen for ``auto``, with the reason.

    classes: number of classes of the data. mixture: the available fitted mixture, in words; None for none. latents: the
    name of their file, for messages. spectral: whether a spectrum is learned. Raises UserError, naming the flag, for
    what the data do not allow.
    """
    published = settings.objective == "mm-fm"
    source, why_source = _source(settings)
    whitened = coordinates_of(settings.objective, source).by_mode
    coupling, why_coupling = _coupling(settings, whitened)
    condition, why_condition = _condition(settings, classes, mixture)
    shift = shift_for(math.prod(shape)) if settings.time_shift is None else settings.time_shift
    weight = 1 / (2 * shape[0]) if settings.spectral_weight is None and spectral else settings.spectral_weight
    record = MethodRecord(
        objective="fm" if published else settings.objective,  # type: ignore[arg-type]  # narrowed by the line itself
        source=source,
        coupling=coupling,
        condition=condition,
        # whitened coordinates do not tell where in the data they are: the mode's mean does
        mode_mean=whitened if settings.mode_mean is None else settings.mode_mean,
        transition_ratio=(settings.transition_ratio or 0.5) if settings.objective == "gm-kl" else None,
        time_distribution=settings.time_distribution,
        time_shift=shift,
        dropout=settings.dropout,
        spectral_weight=1.0 if weight is None else weight,
    )
    _check(settings, record, classes, mixture, latents)
    numbers = " x ".join(map(str, shape))
    settled = (
        (settings.source == "auto", Choice("--source", source, why_source)),
        (settings.coupling == "auto", Choice("--coupling", coupling, why_coupling)),
        (settings.condition == "auto", Choice("--condition", condition, why_condition)),
        (settings.mode_mean is None and whitened, Choice("--mode-mean", "yes", "the coordinates do not tell the mode")),
        (
            settings.spectral_weight is None and spectral,
            Choice("--spectral-weight", f"{record.spectral_weight:.4g}", f"GMFlow's ratio for {shape[0]} channels"),
        ),
        (settings.time_shift is None, Choice("--time-shift", f"{shift:.3g}", f"for latents of {numbers} numbers")),
    )
    return record, tuple(choice for was_open, choice in settled if was_open)


def _source(settings: MethodSettings) -> tuple[SourceName, str]:
    """The source, and why."""
    if settings.source != "auto":
        return settings.source, "as asked"
    if settings.objective == "mm-fm":
        return "gmm", "as published for mm-fm"
    if settings.coupling == "mode":
        return "gmm", "--coupling mode draws noise from modes"
    return "gaussian", f"the default of {settings.objective}"


def _coupling(settings: MethodSettings, whitened: bool) -> tuple[CouplingName, str]:
    """The coupling, and why."""
    if settings.coupling != "auto":
        return settings.coupling, "as asked"
    if settings.objective == "mm-fm":
        return "mode", "as published for mm-fm"
    if whitened:
        return "mode", "gm-kl on --source gmm works in its modes' coordinates"
    return "independent", f"the default of {settings.objective}"


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


def _check(settings: MethodSettings, record: MethodRecord, classes: int, mixture: str | None, latents: str) -> None:
    """Raise UserError, naming the flag, where the data cannot serve the method."""
    if record.condition == "class" and not classes:
        raise UserError(f"--condition class: the images of {latents} had no class folders; use mode or none")
    if settings.focal and not record.uses_modes:
        raise UserError("--focal weighs modes, and this run has none: use --source gmm or --condition mode")
    if record.mode_mean and not record.sees_modes:
        raise UserError(
            "--mode-mean needs a network that is conditioned on the mode: use --condition mode, or gm-kl on --source "
            "gmm"
        )
    if record.uses_modes and mixture is None:
        wanted = "--source gmm" if record.method.uses_modes else "--condition mode"
        raise UserError(f"{wanted} needs a fitted mixture: run gmtool fit-gmm, or give it by --gmm")
