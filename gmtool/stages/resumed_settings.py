"""Whether a run may be resumed by given settings: all that enter a step must be those that it was begun with."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from gmtool.errors import UserError
from gmtool.settings import as_text, flag, settings_of

Settings = Mapping[str, Any]
Agree = Callable[[str, Settings, Settings], bool]
"""Whether a setting, by its name, is the same in two records."""


def equal(name: str, before: Settings, now: Settings) -> bool:
    """Whether the values are equal."""
    return bool(before[name] == now[name])


def expect_same_settings(
    run: Path, config_class: type, before: Settings, now: Settings, free: Collection[str], agree: Agree = equal
) -> None:
    """Raise UserError, naming the flag, unless two records of settings agree in all that is not ``free``.

    before: those that ``run`` was begun with. now: what it is to be resumed by.
    """
    before, now = as_recorded(before), as_recorded(now)
    known = settings_of(config_class)
    if unknown := sorted(set(before) - set(known)):
        raise UserError(
            f"{run} has the unknown setting {unknown[0]!r}: it was written by another gmtool version; choose another "
            "folder"
        )
    for name in known:
        if name not in free and not agree(name, before, now):
            begun = f"{flag(name)} {as_text(before[name])}" if before[name] is not None else f"no {flag(name)}"
            settings = f"{begun}, not {'none' if now[name] is None else as_text(now[name])}"
            raise UserError(
                f"{run} was begun with {settings}: repeat these settings to resume, or choose another folder"
            )


def another(role: str) -> str:
    """An input of another content, such as "another teacher" and "other latents", by its role."""
    return f"{'other' if role.endswith('s') else 'another'} {role}"


def as_recorded(settings: Settings) -> dict[str, Any]:
    """Settings as they come back from a record."""
    recorded: dict[str, Any] = json.loads(json.dumps(dict(settings), default=str))
    return recorded
