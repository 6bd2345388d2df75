"""Whether a run may be resumed by given settings: all that enter a step must be those that it was begun with."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from gmtool.artifacts.manifest import Input
from gmtool.data.image_sets import find_images
from gmtool.errors import UserError
from gmtool.settings import as_flat, flag, settings_of
from gmtool.training.schedule import place_knots

Settings = Mapping[str, Any]

FREE_TO_CHANGE = frozenset(
    {
        *("steps", "save_every", "keep", "keep_every", "preview_every", "eval_every", "eval_num", "tensorboard"),
        *("wandb", "workers", "micro_batch", "skip_limit", "device", "checkpoint_activations", "compile"),
    }
)
"""Settings that a resumed training may change: they change a step by rounding at most, but that another kind of device
draws other random numbers. What follows the number of steps, such as a learning rate, fixes ``steps``."""


def expect_same_settings(run: Path, config_class: type, before: Settings, now: Settings, free: Collection[str]) -> None:
    """Raise UserError, naming the flag, unless two records of settings agree in all that is not ``free``.

    before: those that ``run`` was begun with; what an earlier version did not know is as it is by default. now: what it
    is to be resumed by.
    """
    before, now = as_recorded(before), as_recorded(now)
    known = settings_of(config_class)
    if unknown := sorted(set(before) - set(known)):
        raise UserError(
            f"{run} has the unknown setting {unknown[0]!r}: it was written by another gmtool version; choose another "
            "folder"
        )
    before = {**as_recorded(as_flat(config_class())), **before}
    for name, setting in known.items():
        if name not in free and not _agree(name, before, now):
            begun, asked = (shlex.join(setting.typed(values[name])) for values in (before, now))
            raise UserError(
                f"{run} was begun with {begun or f'no {flag(name)}'}, not {asked or 'without it'}: "
                "repeat these settings to resume, or choose another folder"
            )


def _agree(name: str, before: Settings, now: Settings) -> bool:
    """Whether a setting is the same in two records, however its knots are written."""
    if name == "lr_knots":
        return place_knots(before[name], before["steps"]) == place_knots(now[name], now["steps"])
    return bool(before[name] == now[name])


def is_known(entry: Input, recorded: Input | None) -> bool:
    """Whether an input is the one that a record names; of images, also by what earlier versions named them."""
    if recorded is None or entry.fingerprint == recorded.fingerprint:
        return recorded is not None
    return entry.role == "images" and find_images(Path(entry.path)).is_known_by(recorded.fingerprint)


def all_taken(run: Path, steps: int, follows: bool) -> str:
    """The note on a run that has all its steps. follows: whether its schedule depends on their number."""
    longer = "its schedule follows --steps, so a longer training is a new run"
    return f"{run} has all its {steps:,} steps; {longer if follows else 'use a larger --steps to continue'}"


def another(role: str) -> str:
    """An input of another content, such as "another teacher" and "other latents", by its role."""
    return f"{'other' if role.endswith('s') else 'another'} {role}"


def as_recorded(settings: Settings) -> dict[str, Any]:
    """Settings as they come back from a record."""
    recorded: dict[str, Any] = json.loads(json.dumps(dict(settings), default=str))
    return recorded
