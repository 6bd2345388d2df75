"""How one setting is declared: the type, default, range, unit and help stand in one place, a dataclass field.

The command line makes its flags from these fields (`gmtool.flags`), manifests store them, presets name them.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from gmtool.errors import UserError


@dataclass(frozen=True)
class Option:
    """What a field means to a user, as the metadata of ``Annotated[type, Option(...)]``.

    help: one sentence, with the unit, and what a default of None stands for.
    metavar: the placeholder in the help text.
    minimum, maximum: inclusive range of a number.
    below: exclusive upper end of a number's range.
    reader: makes the value of what a user typed, such as a size with its unit; a default, or a preset's value, also
    passes through it and must come out as it was.
    """

    help: str
    metavar: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    below: float | None = None
    reader: Callable[[Any], Any] | None = None


def flag(name: str) -> str:
    """The flag of a field: ``batch_size`` -> ``--batch-size``."""
    return "--" + name.replace("_", "-")


def as_text(value: Any) -> str:
    """A setting's value as a user would give it; several values of one flag are separated by spaces."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def as_flags(config: Any) -> str:
    """The settings of a config as a user would type them, without those that are open or off."""
    values = {each.name: getattr(config, each.name) for each in fields(config)}
    given = {name: value for name, value in values.items() if value is not None and value is not False and value != ()}
    return " ".join(flag(name) if value is True else f"{flag(name)} {as_text(value)}" for name, value in given.items())


def options_of(config_class: type) -> dict[str, tuple[Any, Option]]:
    """Field name -> (type, Option) of a config dataclass, in the order of declaration."""
    hints = get_type_hints(config_class, include_extras=True)
    found: dict[str, tuple[Any, Option]] = {}
    for field in fields(config_class):
        annotation = hints[field.name]
        if get_origin(annotation) is not Annotated:
            raise TypeError(f"{config_class.__name__}.{field.name} has no Option")
        kind, option = get_args(annotation)
        found[field.name] = (kind, option)
    return found


def _choices(kind: Any) -> tuple[Any, ...]:
    """The values of a Literal, also inside an optional; empty for other types."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(choice for part in get_args(kind) for choice in _choices(part))
    return ()


def check_ranges(config: Any) -> None:
    """Raise UserError for the first field of a config outside its declared range or choices."""
    for name, (kind, option) in options_of(type(config)).items():
        value = getattr(config, name)
        choices = _choices(kind)
        if value is not None and choices and value not in choices:
            raise UserError(f"{flag(name)} must be one of {', '.join(map(str, choices))}, not {value!r}")
        for number in value if isinstance(value, tuple) else () if value is None else (value,):
            if option.minimum is not None and not number >= option.minimum:
                raise UserError(f"{flag(name)} must be at least {option.minimum:g}, not {number}")
            if option.maximum is not None and not number <= option.maximum:
                raise UserError(f"{flag(name)} must be at most {option.maximum:g}, not {number}")
            if option.below is not None and not number < option.below:
                raise UserError(f"{flag(name)} must be below {option.below:g}, not {number}")


def config_from_json(config_class: type, values: Mapping[str, Any], whose: str) -> Any:
    """A config from a manifest's JSON values; paths come back as Path, lists as tuples.

    Raises UserError, naming ``whose``, for a key that the config does not have, as a newer gmtool would write.
    """
    options = options_of(config_class)
    unknown = sorted(set(values) - set(options))
    if unknown:
        raise UserError(f"{whose} has the unknown setting {unknown[0]!r}: it was written by another gmtool version")
    return config_class(**{name: _restored(value, options[name][0]) for name, value in values.items()})


def _restored(value: Any, kind: Any) -> Any:
    """A field's value from JSON."""
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if value is not None and _is_path(kind) else value


def expect_type(kind: Any, value: Any, whose: str) -> None:
    """Raise UserError, naming ``whose``, unless a value read from a file is of a field's type.

    In a file a path is a string, and a tuple a list.
    """
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if not any(_is_of(value, each) for each in kinds):
        wanted = " or ".join(_in_words(each) for each in kinds if each is not types.NoneType)
        raise UserError(f"{whose} must be {wanted}, not {value!r}")


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value from a file is of a type that is no union."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        first, *others = get_args(kind)
        if not isinstance(value, (list, tuple)):
            return False
        parts = (first,) * len(value) if others == [...] else (first, *others)
        return len(value) == len(parts) and all(map(_is_of, value, parts))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, str) if kind is Path else type(value) is kind


def _in_words(kind: Any) -> str:
    """A type that is no union, for people."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is tuple:
        return "a list of numbers" if ... in get_args(kind) else f"a list of {len(get_args(kind))} numbers"
    return {str: "a string", Path: "a string", int: "a whole number", float: "a number", bool: "true or false"}[kind]


def _is_path(kind: Any) -> bool:
    return kind is Path or Path in get_args(kind)


def is_repeated(kind: Any) -> bool:
    """Whether a field takes any number of values: ``tuple[float, ...]``, whose flag is repeated."""
    return get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis


Precision = Literal["auto", "float32", "bfloat16", "float16"]

Device = Annotated[
    str, Option("Where to compute: auto (the first GPU, else the CPU), cpu, cuda or cuda:N.", metavar="DEVICE")
]
Compile = Annotated[
    bool, Option("Compile the network's blocks (torch.compile): a slower start, then faster; needs a C++ compiler.")
]
Seed = Annotated[int, Option("Seed of every random number.", metavar="N", minimum=0)]
Decoder = Annotated[
    str | None,
    Option(
        "Hub id or local folder of an AutoencoderRAE, or a decoder's .pt file of RAE or MM-FM, that turns dinov2 "
        "latents into images (extra: rae). Default: none, which leaves them latents.",
        metavar="ID|FOLDER|FILE",
    ),
]
