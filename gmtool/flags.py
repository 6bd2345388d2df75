"""Flags made from a config dataclass, so that a setting is declared once (`gmtool.settings`)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

import typer
from typer.core import TyperCommand

from gmtool.errors import UserError
from gmtool.settings import Setting, flag, is_repeated, make, settings_of


def _settings_of_preset(context: typer.Context, name: str | None) -> str | None:
    """Make the settings of a preset the defaults of this command; flags override them."""
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
        help="A published recipe by name, or a .toml file of settings; flags override the preset. Default: none.",
        metavar="NAME|FILE",
        show_default=False,
        is_eager=True,
        callback=_settings_of_preset,
        autocompletion=_preset_names,
    ),
]
"""``--preset``: reads the preset's table for the command."""

HourlyPrice = Annotated[
    float | None,
    typer.Option(
        "--price-per-hour",
        help="Price per hour of this machine, for the cost in --dry-run. Default: none.",
        metavar="PRICE",
        min=0.0,
    ),
]
"""``--price-per-hour`` of the commands that train."""


def expect_dry_run(price: float | None, dry_run: bool) -> None:
    """Raise UserError for a price that nothing would use."""
    if price is not None and not dry_run:
        raise UserError("--price-per-hour has no effect without --dry-run: add --dry-run or remove it")


def spelling(name: str, kind: Any) -> str:
    """How a setting is typed; a boolean, which a preset may have set, also with --no-."""
    both = kind is bool or (bool in get_args(kind) and not is_repeated(kind))
    return f"{flag(name)}/--no-{flag(name)[2:]}" if both else flag(name)


def with_options(config_class: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command that takes ``config``: it then takes one flag per setting of ``config_class`` instead.

    The wrapped function keeps its other parameters; ranges and choices are checked by the settings themselves.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        parameters = [parameter for name, parameter in own.items() if name != "config"]
        settings = settings_of(config_class)
        parameters += [_parameter(setting) for setting in settings.values()]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            values = {name: given.pop(name) for name in settings}
            values = {name: _joined(value) if isinstance(value, list) else value for name, value in values.items()}
            command(config=make(config_class, values), **given)

        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # typer reads it, mypy does not know it
            [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        )
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _joined(values: list[Any]) -> tuple[Any, ...]:
    """The values of a flag that was repeated; a reader may have made several of each."""
    return tuple(item for value in values for item in (value if isinstance(value, tuple) else (value,)))


def _parameter(setting: Setting) -> inspect.Parameter:
    """The parameter from which typer makes a setting's flag."""
    option, taken = setting.option, setting.kind
    if is_repeated(taken):
        # a type that is known at run time alone, as below; the reader makes the values where there is one
        taken = list[get_args(taken)[0]] if option.reader is None else list[str]  # type: ignore[misc]
    elif option.choices is not None:
        taken = Literal[setting.choices]
        taken = taken | None if type(None) in get_args(setting.kind) else taken
    typed = Annotated[
        taken,  # type: ignore[valid-type]
        typer.Option(
            spelling(setting.name, setting.kind),
            help=option.help,
            metavar=option.metavar,
            show_default=setting.default is not None,
            parser=option.reader,
            rich_help_panel=setting.group or None,
        ),
    ]
    return inspect.Parameter(setting.name, inspect.Parameter.KEYWORD_ONLY, default=setting.default, annotation=typed)


class GroupedCommand(TyperCommand):
    """A command whose help shows the flags of each component under a title of their own."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, the command's own flags, then those of its components."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                default = "Arguments" if parameter.param_type_name == "argument" else "Options"
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or default, []).append(record)
        for title in sorted(groups, key=lambda title: ("Arguments", "Options").index(title) if title in FIRST else 2):
            with formatter.section(title):
                formatter.write_dl(groups[title])


FIRST = ("Arguments", "Options")
"""Titles of the help that stand before those of components."""
