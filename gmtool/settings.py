"""The declaration of a setting: type, default, range, unit and help in one place, a field of a dataclass.

A component (an optimizer, a network) declares its settings beside itself, as a frozen dataclass of fields
``Annotated[type, Option(...)]``. A stage's configuration is a dataclass of such fields and of components' settings;
all names in it are different, so that they can be written flat: as flags (`gmtool.flags`), in manifests and presets.
"""

from __future__ import annotations

import math
import shlex
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

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
    choices: gives the names that a text may be, where they are the rows of a table; a function of a module, since in
    annotations that are strings a lambda does not see the module's names.
    name: what the setting is called outside, where that is not the field's name.
    holds_commas: whether a text may itself hold commas, so that they cannot separate several values of a setting.
    """

    help: str
    metavar: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    below: float | None = None
    reader: Callable[[Any], Any] | None = None
    choices: Callable[[], Sequence[str]] | None = None
    name: str | None = None
    holds_commas: bool = False


@dataclass(frozen=True)
class Setting:
    """A field of a configuration: its name, by which it is known outside, its type, its meaning, its default.

    group: the title of the component that it belongs to, "" for the stage's own. path: the fields that lead to it.
    """

    name: str
    kind: Any
    option: Option
    default: Any
    group: str
    path: tuple[str, ...]

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values that it may have; empty where these are not counted."""
        return _choices(self.kind) if self.option.choices is None else tuple(self.option.choices())

    def of(self, config: Any) -> Any:
        """The setting's value in a configuration."""
        for name in self.path:
            config = getattr(config, name)
        return config

    def typed(self, value: Any) -> list[str]:
        """What a user types for a value, also one from JSON, word by word; nothing for None and for no values."""
        if value is None:
            return []
        if isinstance(value, bool):
            return [flag(self.name) if value else f"--no-{flag(self.name)[2:]}"]
        items = list(map(str, value)) if isinstance(value, (tuple, list)) else [str(value)]
        if is_repeated(self.kind):
            return [word for item in items for word in (flag(self.name), item)]
        return [flag(self.name), *items]


class Settings:
    """Base of components' settings and of configurations: checked when they are made.

    TITLE: what a component's settings stand under in the help.
    """

    TITLE: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Raise UserError for a value outside its range, and for what `check` refuses."""
        check_ranges(self)
        self.check()

    def check(self) -> None:
        """Raise UserError, naming the flags, for settings that do not go together."""


_Config = TypeVar("_Config")


def settings_of(config_class: type) -> dict[str, Setting]:
    """The settings of a configuration by name, in the order of declaration.

    Raises TypeError for a name that is given twice, and for a field without an `Option`.
    """
    settings: dict[str, Setting] = {}
    for setting in _walk(config_class, "", (), None):
        if setting.name in settings:
            raise TypeError(f"{config_class.__name__} has two settings {setting.name}")
        settings[setting.name] = setting
    return settings


def _walk(config_class: type, group: str, path: tuple[str, ...], values: Any) -> Iterator[Setting]:
    """The settings of a class. values: an instance whose values are the defaults; None for the class's own."""
    hints = get_type_hints(config_class, include_extras=True)
    for field in fields(config_class):
        kind, here = hints[field.name], (*path, field.name)
        default = field.default if values is None else getattr(values, field.name)
        if is_dataclass(kind):
            given = default if isinstance(default, kind) else None  # type: ignore[arg-type]  # a class, not a value
            yield from _walk(kind, getattr(kind, "TITLE", ""), here, given)  # type: ignore[arg-type]  # as above
        elif get_origin(kind) is Annotated:
            plain, option = get_args(kind)
            yield Setting(option.name or field.name, plain, option, default, group, here)
        else:
            raise TypeError(f"{config_class.__name__}.{field.name} has no Option")


def as_flat(config: Any) -> dict[str, Any]:
    """A configuration's values by the settings' names."""
    return {name: setting.of(config) for name, setting in settings_of(type(config)).items()}


def changed(config: _Config, changes: Mapping[str, Any]) -> _Config:
    """The configuration with other values, by the settings' names.

    Raises KeyError for a name that it does not have, UserError for values that it refuses.
    """
    settings, values = settings_of(type(config)), dict(changes)
    groups: dict[str, dict[str, Any]] = {}
    direct: dict[str, Any] = {}
    for name, value in values.items():
        first, *rest = settings[name].path
        if rest:
            groups.setdefault(first, {})[name] = value
        else:
            direct[first] = value
    nested = {first: changed(getattr(config, first), some) for first, some in groups.items()}
    return replace(config, **direct, **nested)  # type: ignore[type-var]  # a dataclass


def make(config_class: type[_Config], values: Mapping[str, Any]) -> _Config:
    """A configuration of the given values, by the settings' names, and defaults.

    All values are set at once: no default need go with the values that others have. Raises KeyError for an unknown
    name, UserError for values that the configuration refuses.
    """
    settings = settings_of(config_class)
    unknown = sorted(set(values) - set(settings))
    if unknown:
        raise KeyError(unknown[0])
    return _built(config_class, {setting.path: values[name] for name, setting in settings.items() if name in values})


def _built(config_class: type[_Config], values: Mapping[tuple[str, ...], Any], default: Any = None) -> _Config:
    """A configuration of values by the fields that lead to them, and of those of ``default``, if it is one."""
    hints, given = get_type_hints(config_class), {}
    for field in fields(config_class):  # type: ignore[arg-type]  # a dataclass
        inner = {path[1:]: value for path, value in values.items() if path[0] == field.name}
        if is_dataclass(hints[field.name]):
            component = field.default if default is None else getattr(default, field.name)
            component = component if isinstance(component, hints[field.name]) else None
            given[field.name] = _built(hints[field.name], inner, component)
        elif inner:
            given[field.name] = inner[()]
        elif default is not None:
            given[field.name] = getattr(default, field.name)
    return config_class(**given)


def flag(name: str) -> str:
    """The flag of a setting: ``batch_size`` -> ``--batch-size``."""
    return "--" + name.replace("_", "-")


def as_text(value: Any) -> str:
    """A setting's value as a user would give it; several values of one flag are separated by spaces."""
    return " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def quoted(path: Path) -> str:
    """A path as a user would type it in a shell."""
    return shlex.quote(str(path))


def as_flags(config_class: type, values: Mapping[str, Any]) -> str:
    """A configuration's values, by the settings' names, as a user would type them.

    Without those that are None or (), and without False where that is the default or an open one settled as no.
    """
    return shlex.join(word for setting, value in _told(config_class, values) for word in setting.typed(value))


def as_rows(config_class: type, values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What `as_flags` tells, as rows of a table: a flag, and its value if it takes one."""
    return [
        (setting.typed(value)[0], "" if isinstance(value, bool) else as_text(value))
        for setting, value in _told(config_class, values)
    ]


def _told(config_class: type, values: Mapping[str, Any]) -> list[tuple[Setting, Any]]:
    settings = settings_of(config_class)
    return [
        (settings[name], value)
        for name, value in values.items()
        if settings[name].typed(value) and (value is not False or settings[name].default is True)
    ]


def as_arguments(config: Any) -> list[str]:
    """What a user types for a configuration: the flags of all settings that are not at their defaults."""
    given = ((setting, setting.of(config)) for setting in settings_of(type(config)).values())
    return [word for setting, value in given if value != setting.default for word in setting.typed(value)]


def _choices(kind: Any) -> tuple[Any, ...]:
    """The values of a Literal, also inside an optional or a tuple; empty for other types."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    if get_origin(kind) in (Union, types.UnionType, tuple):
        return tuple(choice for part in get_args(kind) for choice in _choices(part))
    return ()


def check_ranges(config: Any) -> None:
    """Raise UserError for the first own field of a config outside its declared range or choices, or not finite."""
    for name, setting in settings_of(type(config)).items():
        if len(setting.path) > 1:
            continue  # the component has looked at it
        value, option, choices = setting.of(config), setting.option, setting.choices
        for item in value if isinstance(value, tuple) else () if value is None else (value,):
            if choices and item not in choices:
                raise UserError(f"{flag(name)} must be one of {', '.join(map(str, choices))}, not {item!r}")
            _check_number(name, item, option)


LARGEST = 2**63 - 1
"""Largest whole number: files and libraries use 64 bits."""


def _check_number(name: str, number: Any, option: Option) -> None:
    if isinstance(number, float) and not math.isfinite(number):
        raise UserError(f"{flag(name)} must be a finite number, not {number}")
    if isinstance(number, int) and abs(number) > LARGEST:
        raise UserError(f"{flag(name)} must be below 2^63, not {number}")
    if option.minimum is not None and not number >= option.minimum:
        raise UserError(f"{flag(name)} must be at least {option.minimum:g}, not {number}")
    if option.maximum is not None and not number <= option.maximum:
        raise UserError(f"{flag(name)} must be at most {option.maximum:g}, not {number}")
    if option.below is not None and not number < option.below:
        raise UserError(f"{flag(name)} must be below {option.below:g}, not {number}")


def config_from_json(config_class: type[_Config], values: Mapping[str, Any], whose: str) -> _Config:
    """A config from a manifest's JSON values; paths come back as Path, lists as tuples.

    Raises UserError, naming ``whose``, for a key that the config does not have, as a newer gmtool would write; and for
    values that the config refuses.
    """
    settings = settings_of(config_class)
    unknown = sorted(set(values) - set(settings))
    if unknown:
        raise UserError(f"{whose} has the unknown setting {unknown[0]!r}: it was written by another gmtool version")
    return make(config_class, {name: _restored(value, settings[name].kind) for name, value in values.items()})


def some_from_json(config_class: type[_Config], values: Mapping[str, Any], whose: str) -> _Config:
    """The settings of a component from the JSON values of a whole configuration; see `config_from_json`."""
    return config_from_json(config_class, {k: v for k, v in values.items() if k in settings_of(config_class)}, whose)


def _restored(value: Any, kind: Any) -> Any:
    """A field's value from JSON."""
    if isinstance(value, list):
        return tuple(map(Path, value)) if _is_path(kind) else tuple(value)
    return Path(value) if value is not None and _is_path(kind) else value


def expect_type(kind: Any, value: Any, whose: str) -> None:
    """Raise UserError, naming ``whose``, unless a value read from a file is of a field's type.

    In a file a path is a string, and a tuple a list.
    """
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if not any(_is_of(value, member) for member in kinds):
        wanted = " or ".join(_in_words(member) for member in kinds if member is not types.NoneType)
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
    """A human-readable name of a type that is no union."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is tuple:
        first, *others = get_args(kind)
        kinds = "numbers" if first in (int, float) else "values"
        return f"a list of {kinds}" if others == [...] else f"a list of {1 + len(others)} {kinds}"
    return {str: "a string", Path: "a string", int: "a whole number", float: "a number", bool: "true or false"}[kind]


def _is_path(kind: Any) -> bool:
    return kind is Path or Path in get_args(kind)


def is_repeated(kind: Any) -> bool:
    """Whether a field takes any number of values: ``tuple[float, ...]``, whose flag is repeated."""
    return get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis


Precision = Literal["auto", "float32", "bfloat16", "float16"]

NetworkPrecision = Annotated[
    Precision, Option("Precision of the network. auto: bfloat16 on a GPU that supports it, else float32.")
]
EncoderPrecision = Annotated[
    Precision, Option("Precision of the encoder. auto: bfloat16 on a GPU that supports it, else float32.")
]
BatchSize = Annotated[int, Option("Batch size.", metavar="N", minimum=1)]
ImageWorkers = Annotated[
    int | None,
    Option(
        "Processes that decode images; 0: the main process. Default: the number of CPU cores, at most 16.",
        metavar="N",
        minimum=0,
    ),
]
ImageLimit = Annotated[
    int | None, Option("Use only N images, evenly spaced over the folder. Default: all.", metavar="N", minimum=1)
]
SkipBad = Annotated[bool, Option("Skip and list unreadable images instead of stopping.")]
SampleBatch = Annotated[int, Option("Batch size; it does not change the images.", metavar="N", minimum=1)]
RealImages = Annotated[
    Path | None,
    Option(
        "Real images: a folder or archive, a latents file, or an .npz of images or of mu and sigma. Default: the "
        "images that the run was trained on.",
        metavar="PATH",
    ),
]
CacheSize = Annotated[
    float,
    Option(
        "Size limit of the feature cache in ~/.cache/gmtool (or GMTOOL_CACHE), by which images are not passed through "
        "an extractor twice; the least recently used features are removed first. 0: no cache.",
        metavar="GIB",
        minimum=0,
    ),
]
Device = Annotated[
    str, Option("Where to compute: auto (the first GPU, else the CPU), cpu, cuda or cuda:N.", metavar="DEVICE")
]
Compile = Annotated[
    bool, Option("Compile the network's blocks (torch.compile): a slower start, then faster; needs a C++ compiler.")
]
Fraction = Annotated[
    float,
    Option(
        "Fraction of the images to use, also for statistics: a random subset, fixed by --seed, with the same fraction "
        "of each class. Give fit-gmm and train the same --fraction and --seed.",
        metavar="SHARE",
        minimum=0.0,
        maximum=1.0,
    ),
]
Seed = Annotated[int, Option("Seed of all random numbers.", metavar="N", minimum=0)]
Decoder = Annotated[
    str | None,
    Option(
        "Decoder that turns an encoder's latents into images: hub id or local folder of an AutoencoderRAE, or a .pt "
        "file of RAE or MM-FM (extra: rae). Default: none, and then no images are made from an encoder's latents.",
        metavar="ID|FOLDER|FILE",
    ),
]
