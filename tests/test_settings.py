"""Settings of components, composed: flat outside, nested inside."""

import ast
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

import gmtool
from gmtool.errors import UserError
from gmtool.settings import (
    Option,
    Settings,
    as_flags,
    as_flat,
    as_rows,
    changed,
    config_from_json,
    make,
    quoted,
    settings_of,
)


@dataclass(frozen=True)
class Engine(Settings):
    TITLE = "Engine"

    rate: Annotated[float, Option("Rate.", minimum=0.0)] = 1.0
    kind: Annotated[str, Option("Kind.", choices=lambda: ("a", "b"), name="engine")] = "a"
    cold: Annotated[bool, Option("Cold.")] = False

    def check(self) -> None:
        if self.cold and self.kind == "b":
            raise UserError("--cold is for --engine a")


@dataclass(frozen=True)
class Machine(Settings):
    engine: Engine = Engine()
    seed: Annotated[int, Option("Seed.", minimum=0)] = 0


@dataclass(frozen=True)
class Twice(Settings):
    engine: Engine = Engine()
    rate: Annotated[float, Option("Rate.")] = 1.0


def test_settings_are_flat_outside() -> None:
    assert {name: (setting.group, setting.path) for name, setting in settings_of(Machine).items()} == {
        "rate": ("Engine", ("engine", "rate")),
        "engine": ("Engine", ("engine", "kind")),
        "cold": ("Engine", ("engine", "cold")),
        "seed": ("", ("seed",)),
    }
    config = make(Machine, {"rate": 2.0, "engine": "b", "seed": 3})
    assert config == Machine(Engine(2.0, "b"), 3)
    assert as_flat(config) == {"rate": 2.0, "engine": "b", "cold": False, "seed": 3}
    assert as_flags(Machine, as_flat(config)) == "--rate 2.0 --engine b --seed 3"
    assert changed(config, {"engine": "a", "seed": 1}) == Machine(Engine(2.0, "a"), 1)
    assert config_from_json(Machine, as_flat(config), "it") == config


@dataclass(frozen=True)
class FastMachine(Settings):
    engine: Engine = Engine(rate=5.0)
    seed: Annotated[int, Option("Seed.", minimum=0)] = 0


def test_a_configuration_may_have_other_defaults_than_its_components() -> None:
    assert settings_of(FastMachine)["rate"].default == 5.0
    assert make(FastMachine, {"engine": "b"}) == FastMachine(Engine(5.0, "b"))
    assert make(FastMachine, {"rate": 2.0}).engine.rate == 2.0
    assert settings_of(Machine)["rate"].default == 1.0


@dataclass(frozen=True)
class Camera(Settings):
    colour: Annotated[bool, Option("Colour.")] = True
    flash: Annotated[bool, Option("Flash.")] = False
    zoom: Annotated[bool | None, Option("Zoom.")] = None
    dim: Annotated[float, Option("Dim.")] = 0.5
    filters: Annotated[tuple[str, ...], Option("Filters.")] = ()
    focus: Annotated[tuple[float, float], Option("Focus.")] = (0.1, 0.9)
    film: Annotated[Path | None, Option("Film.")] = None
    name: Annotated[str | None, Option("Name.")] = "one"


def test_settings_are_told_as_they_are_typed() -> None:
    """Values that are 0, several values, paths with spaces, and what is switched off though it is on by default."""
    given = {"colour": False, "flash": False, "zoom": False, "dim": 0.0, "filters": ("red", "blue"), "name": None}
    values = {**as_flat(Camera()), **given, "film": Path("my film")}
    assert as_flags(Camera, values) == (
        "--no-colour --dim 0.0 --filters red --filters blue --focus 0.1 0.9 --film 'my film'"
    )
    assert as_rows(Camera, values) == [
        ("--no-colour", ""),
        ("--dim", "0.0"),
        ("--filters", "red blue"),
        ("--focus", "0.1 0.9"),
        ("--film", "my film"),
    ]
    assert as_flags(Camera, {"colour": True, "flash": True, "zoom": True}) == "--colour --flash --zoom"
    assert settings_of(Camera)["filters"].typed(["red"]) == ["--filters", "red"]  # from JSON
    assert settings_of(Camera)["zoom"].typed(False) == ["--no-zoom"]


def test_commands_that_are_suggested_quote_paths() -> None:
    assert shlex.split(quoted(Path("my latents.h5"))) == ["my latents.h5"]
    for path in sorted(Path(gmtool.__file__).parent.glob("stages/*/command.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                text = ast.unparse(node)
                assert not re.search(r"(gmtool|--)[a-z -]+ \{(?!quoted)", text), f"{path.name}:{node.lineno}: {text}"


def test_all_values_are_set_at_once() -> None:
    """Neither --cold alone with the old kind nor the new kind alone would be refused on the way."""
    assert changed(make(Machine, {"cold": True}), {"engine": "b", "cold": False}).engine.kind == "b"


def test_a_name_that_is_not_there_is_an_error() -> None:
    for build in (lambda: make(Machine, {"speed": 1}), lambda: changed(Machine(), {"speed": 1})):
        with pytest.raises(KeyError, match="speed"):
            build()
    with pytest.raises(UserError, match="the unknown setting 'speed'"):
        config_from_json(Machine, {"speed": 1}, "it")
    with pytest.raises(TypeError, match="two settings rate"):
        settings_of(Twice)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rate": -1.0}, "--rate must be at least 0, not -1"),
        ({"rate": float("nan")}, "--rate must be a finite number"),
        ({"rate": float("inf")}, "--rate must be a finite number"),
        ({"seed": 2**63}, "--seed must be below 2\\^63"),
        ({"engine": "c"}, "--engine must be one of a, b, not 'c'"),
        ({"engine": "b", "cold": True}, "--cold is for --engine a"),
    ],
)
def test_what_cannot_be_is_refused_by_its_flag(values, words) -> None:
    with pytest.raises(UserError, match=words):
        make(Machine, values)


def test_no_option_is_declared_twice():
    """What several commands take is one name in `gmtool.settings` or `gmtool.flags`, or in settings that they share."""
    places: dict[str, list[str]] = {}
    for path in sorted(Path(gmtool.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            annotation = node.annotation if isinstance(node, ast.AnnAssign | ast.arg) else None
            if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
                option = annotation.slice.elts[1]
                positional = ast.unparse(option.func) == "typer.Argument" or "--dry-run" in ast.unparse(option)
                if not positional:  # whose help is about the command
                    places.setdefault(ast.unparse(annotation), []).append(f"{path.name}:{node.lineno}")
    assert {text: lines for text, lines in places.items() if len(lines) > 1} == {}
