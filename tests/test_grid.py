"""Settings that take several values: what is typed, in a preset too, and what is refused."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from gmtool.errors import UserError
from gmtool.flags import with_options
from gmtool.grid import read_values, several
from gmtool.sampling.settings import SamplingSettings, SelectionSettings
from gmtool.settings import Option, Settings, as_arguments, as_flat, config_from_json, expect_type, make, settings_of
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.sweep.config import SweepConfig

SETTINGS = {**settings_of(SamplingSettings), **settings_of(SelectionSettings)}


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("steps", "8", (8,)),
        ("steps", "1,2, 4 ,8", (1, 2, 4, 8)),
        ("steps", "2,2,1", (2, 1)),
        ("steps", "2:10:5", (2, 4, 6, 8, 10)),
        ("steps", "1,2:6:3", (1, 2, 4, 6)),
        ("guidance_scale", "0:0.75:4", (0.0, 0.25, 0.5, 0.75)),
        ("guidance_scale", "0:1:4", (0.0, 0.333333, 0.666667, 1.0)),
        ("guidance_scale", "0.5:0.1:3", (0.5, 0.3, 0.1)),
        ("solver", "gm-ode,gm-sde", ("gm-ode", "gm-sde")),
        ("spectral", "no,yes", (False, True)),
        ("guide", "a,b", (Path("a,b"),)),
        ("guidance_interval", "0.2,0.8", ("0.2,0.8",)),
        ("classes", "1,2", ("1,2",)),
        ("modes", "3,5", ("3,5",)),
        ("steps", 8, (8,)),
    ],
)
def test_what_is_typed(name: str, text: object, values: tuple) -> None:
    assert read_values(SETTINGS[name], text) == values
    assert list(map(type, read_values(SETTINGS[name], text))) == list(map(type, values))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("steps", "1,two", "--steps: 'two' is no whole number"),
        ("steps", "1.5", "--steps: '1.5' is no whole number"),
        ("steps", "1,,2", "--steps '1,,2' has an empty value"),
        ("steps", "", "has an empty value"),
        ("steps", "1:10:4.5", "'4.5' is no whole number"),
        ("steps", "1:10:5", "not all of these 5 numbers are whole: list them"),
        ("guidance_scale", "0:1:1", "has 2 to 10,000 numbers"),
        ("guidance_scale", "0:1:100000", "has 2 to 10,000 numbers"),
        ("guidance_scale", "0:x:3", "'x' is no number"),
        ("guidance_scale", "0:1", "'0:1' is no number"),
        ("spectral", "perhaps", "'perhaps' is neither yes nor no"),
    ],
)
def test_what_is_typed_wrong(name: str, text: str, words: str) -> None:
    with pytest.raises(UserError, match="--") as caught:
        read_values(SETTINGS[name], text)
    assert words in str(caught.value)


def test_every_sampling_setting_takes_several_values() -> None:
    """They are those of ``gmtool sample``, but for the seed and what changes no sample."""
    one, grid = settings_of(SampleConfig), settings_of(SweepConfig)
    alone = {"seed", "decoder", "batch_size", "precision", "compile", "device"}
    assert set(one) <= set(grid)
    for name in set(one) - alone:
        assert grid[name].option.help.startswith(one[name].option.help)
        assert grid[name].default == (() if one[name].default is None else (one[name].default,))
    for name in alone:
        assert grid[name].kind == one[name].kind


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": (4, 0)}, "--steps must be at least 1, not 0"),
        ({"solver": ("euler", "rk4")}, "--solver must be one of euler, .*, not 'rk4'"),
        ({"weights": ("ema", "both")}, "--weights must be one of ema, model, not 'both'"),
        ({"guidance_scale": (0.1, float("nan"))}, "--guidance-scale must be a finite number"),
        ({"orthogonal": (0.5, 2.0)}, "--orthogonal must be at most 1, not 2"),
    ],
)
def test_each_value_is_checked(values: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(SweepConfig, values)


def run_flags(*arguments: str) -> SweepConfig:
    """The configuration of a command line."""
    app, configs = typer.Typer(), []

    @app.command()
    @with_options(SweepConfig)
    def command(*, config: SweepConfig) -> None:
        configs.append(config)

    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return configs[0]


def test_flags_with_commas_and_several_flags() -> None:
    config = run_flags("--steps", "1,2", "--steps", "8", "--spectral", "yes,no", "--guidance-interval", "0.2,0.8")
    values = as_flat(config)
    assert values["steps"] == (1, 2, 8)
    assert values["spectral"] == (True, False)
    assert values["guidance_interval"] == ("0.2,0.8",)
    assert values["solver"] == () and values["num"] == (1000,)
    assert run_flags() == SweepConfig()


def test_values_go_through_json_and_presets() -> None:
    config = make(SweepConfig, {"steps": (1, 2), "guide": (Path("weak"),), "spectral": (True, False)})
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in as_flat(config).items()}
    values["guide"] = ["weak"]
    assert config_from_json(SweepConfig, values, "it") == config
    for name, setting in settings_of(SweepConfig).items():
        if setting.of(config) is not None:
            expect_type(setting.kind, values[name], name)
    with pytest.raises(UserError, match="must be a list of values, not 3"):
        expect_type(settings_of(SweepConfig)["solver"].kind, 3, "solver")


@dataclass(frozen=True)
class Some(Settings):
    names: Annotated[tuple[str, ...], Option("Names.")] = ()
    on: Annotated[bool, Option("On.")] = False
    off: Annotated[bool, Option("Off.")] = True
    count: Annotated[int | None, Option("Count.")] = None
    pair: Annotated[tuple[int, int], Option("Pair.")] = (1, 2)


def test_what_a_user_types_for_a_configuration() -> None:
    assert as_arguments(Some()) == []
    typed = as_arguments(Some(names=("a b", "c"), on=True, off=False, count=0, pair=(3, 4)))
    assert typed == ["--names", "a b", "--names", "c", "--on", "--no-off", "--count", "0", "--pair", "3", "4"]


def test_a_component_s_settings_keep_their_title() -> None:
    grid = several(SelectionSettings, without=("seed",))
    assert grid.TITLE == SelectionSettings.TITLE
    assert "seed" not in settings_of(grid)
    assert {setting.group for setting in settings_of(grid).values()} == {
        ""
    }  # titles are those of groups within a config
    assert settings_of(SweepConfig)["num"].group == SelectionSettings.TITLE
