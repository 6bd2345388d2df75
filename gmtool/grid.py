"""Settings that take several values: the axes of a grid, made from the settings that take one.

A value is typed as for the setting itself. Several are separated by commas, or are several flags; FIRST:LAST:COUNT are
so many numbers evenly spaced, both ends included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import field, make_dataclass, replace
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args

from gmtool.errors import UserError
from gmtool.settings import Setting, Settings, flag, settings_of

DIGITS = 6
"""Significant digits of the numbers of a range, so that they can be read and typed."""

SHORT = 32
"""Letters of the choices that a placeholder may list."""

TRUTHS = {"yes": True, "no": False, "true": True, "false": False}


def several(config_class: type, without: Iterable[str] = ()) -> Any:
    """A frozen dataclass of a component's settings, each of which takes any number of values.

    without: settings that are left out. A setting is the tuple of its values: by default its one default, () where that
    is None. Ranges and choices are those of the setting and hold for each value; combinations of values are checked
    where they are made.
    """
    settings = [setting for setting in settings_of(config_class).values() if setting.name not in without]
    members = [(setting.path[-1], _kind(setting), field(default=_default(setting))) for setting in settings]
    made: Any = make_dataclass(f"Several{config_class.__name__}", members, bases=(Settings,), frozen=True)
    made.TITLE = getattr(config_class, "TITLE", "")
    made.__doc__ = f"Several values for each setting of `{config_class.__name__}`."
    return made


def _default(setting: Setting) -> tuple[Any, ...]:
    return () if setting.default is None else (setting.default,)


def _kind(setting: Setting) -> Any:
    """The type of several values, with the option that reads them."""
    inner = _inner(setting)
    option = setting.option
    choices = "|".join(map(str, setting.choices))
    one = option.metavar or ("yes|no" if inner is bool else choices if len(choices) < SHORT else "NAME")
    metavar, text = f"{one},...", option.help
    if _is_whole(setting):
        metavar, text = one, f"{text} Repeat the flag for several."
    option = replace(option, help=text, metavar=metavar, reader=partial(read_values, setting))
    return Annotated[tuple[inner, ...], option]  # type: ignore[valid-type]  # known when it is run


def _is_whole(setting: Setting) -> bool:
    """Whether commas belong to a value."""
    return setting.option.holds_commas or _inner(setting) is Path


def _inner(setting: Setting) -> Any:
    """The type of one value, without None."""
    kinds = [kind for kind in get_args(setting.kind) if kind is not NoneType] if _is_optional(setting) else []
    return kinds[0] if kinds else setting.kind


def _is_optional(setting: Setting) -> bool:
    return NoneType in get_args(setting.kind)


def read_values(setting: Setting, text: Any) -> tuple[Any, ...]:
    """The values in what was typed for a setting; anything but a string is one value.

    Raises UserError, naming the flag, for values that are empty or of another type, and for a wrong range.
    """
    if not isinstance(text, str):
        return (text,)
    parts = [text] if _is_whole(setting) else [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UserError(f"{flag(setting.name)} {text!r} has an empty value: separate values by single commas")
    return tuple(dict.fromkeys(value for part in parts for value in _values(setting, part)))


def _values(setting: Setting, part: str) -> Sequence[Any]:
    """The values of a part between commas."""
    kind = _inner(setting)
    if kind in (int, float) and part.count(":") == 2:
        return _range(setting, kind, part)
    if kind is bool:
        if part.lower() not in TRUTHS:
            raise UserError(f"{flag(setting.name)}: {part!r} is neither yes nor no")
        return [TRUTHS[part.lower()]]
    return [_number(setting, kind, part)] if kind in (int, float) else [Path(part) if kind is Path else part]


def _number(setting: Setting, kind: Callable[[str], Any], part: str) -> Any:
    try:
        return kind(part)
    except ValueError:
        noun = "whole number" if kind is int else "number"
        raise UserError(
            f"{flag(setting.name)}: {part!r} is no {noun}: give some, separated by commas, or FIRST:LAST:COUNT"
        ) from None


def _range(setting: Setting, kind: Any, part: str) -> list[Any]:
    """The numbers of FIRST:LAST:COUNT."""
    ends, count = part.rsplit(":", 1)
    first, last = (_number(setting, float, end) for end in ends.split(":"))
    number = _number(setting, int, count)
    if not 2 <= number <= 10_000:
        raise UserError(f"{flag(setting.name)} {part}: a range FIRST:LAST:COUNT has 2 to 10,000 numbers")
    step = (last - first) / (number - 1)
    values = [float(f"{first + index * step:.{DIGITS}g}") for index in range(number)]
    if kind is int:
        if any(value != round(value) for value in values):
            raise UserError(f"{flag(setting.name)} {part}: not all of these {number} numbers are whole: list them")
        return [round(value) for value in values]
    return values
