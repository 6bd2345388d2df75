"""Settings of several artifacts beside each other, those that differ first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gmtool.settings import as_text, flag

ABSENT = "–"
"""What stands for a setting that an artifact does not have, or that is open."""

OF_THE_MACHINE = ("device", "workers", "tensorboard", "wandb")
"""Settings that change nothing in what is learned or drawn."""


@dataclass(frozen=True)
class SettingsTable:
    """differing: flag -> a text for each artifact; common: flag -> the text of all of them."""

    differing: Mapping[str, tuple[str, ...]]
    common: Mapping[str, str]


def compare(configs: Sequence[Mapping[str, Any]]) -> SettingsTable:
    """The settings of artifacts of one kind, by their flags, in the order in which they are declared."""
    names = list(dict.fromkeys(name for config in configs for name in config))
    texts = {flag(name): tuple(_text(config.get(name)) for config in configs) for name in names}
    return SettingsTable(
        {name: values for name, values in texts.items() if len(set(values)) > 1},
        {name: values[0] for name, values in texts.items() if len(set(values)) == 1},
    )


def _text(value: Any) -> str:
    if value is None or value in ((), []):
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    return as_text(value)
