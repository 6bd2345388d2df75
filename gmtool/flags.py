"""Flags made from a config dataclass, so that a setting is declared once (`gmtool.settings`)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, get_args

import typer

from gmtool.settings import flag, is_repeated, options_of


def _settings_of_preset(context: typer.Context, name: str | None) -> str | None:
    """Make the settings of a preset the defaults of this command."""
    if name is not None:
        from gmtool.stages.presets import load_preset

        context.default_map = dict(load_preset(name).of(str(context.info_name)))
    return name


def _preset_names() -> list[str]:
    from gmtool.stages.presets import preset_names

    return list(preset_names())


PresetName = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="Settings to begin with, which flags go over: a published recipe by name, or a .toml file. Default: none.",
        metavar="NAME|FILE",
        show_default=False,
        is_eager=True,
        callback=_settings_of_preset,
        autocompletion=_preset_names,
    ),
]
"""``--preset``: reads the table of the command that it stands at."""


def spelling(name: str, kind: Any) -> str:
    """How a setting is typed; one of yes or no, which a preset may have set, also with --no- before it."""
    both = kind is bool or bool in get_args(kind)
    return f"{flag(name)}/--no-{flag(name)[2:]}" if both else flag(name)


def with_options(config_class: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command that takes ``config``: it then takes one flag a field of ``config_class`` instead.

    The wrapped function keeps its other parameters; ranges and choices are checked by the config itself.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        parameters = [each for name, each in own.items() if name != "config"]
        defaults = {each.name: each.default for each in fields(config_class)}
        for name, (kind, option) in options_of(config_class).items():
            taken = list[get_args(kind)[0]] if is_repeated(kind) else kind  # type: ignore[misc]  # as below
            typed = Annotated[
                taken,  # type: ignore[valid-type]  # a field's type, known at run time alone
                typer.Option(
                    spelling(name, kind),
                    help=option.help,
                    metavar=option.metavar,
                    show_default=defaults[name] is not None,
                    parser=option.reader,
                ),
            ]
            parameters.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=typed)
            )

        @functools.wraps(command)
        def run(**given: Any) -> None:
            settings = {name: given.pop(name) for name in defaults}
            settings = {name: tuple(each) if isinstance(each, list) else each for name, each in settings.items()}
            command(config=config_class(**settings), **given)

        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # typer reads it, mypy does not know it
            [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
        )
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate
