"""The reference page lists what the tables in the code hold, row by row, and flags that exist."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import typer

from gmtool.cli.app import app
from gmtool.evaluation.extractors import EXTRACTORS
from gmtool.evaluation.metrics import METRICS, Need
from gmtool.flow.guidance import GUIDANCES
from gmtool.flow.names import Condition, CouplingName, PolicyName, SourceName
from gmtool.flow.solvers import SOLVERS
from gmtool.nn import NETWORKS
from gmtool.settings import settings_of
from gmtool.stages.presets import load_preset, preset_names
from gmtool.tokenizers.table import TOKENIZERS
from gmtool.training.settings import MethodSettings

PAGE = (Path(__file__).parents[1] / "gmtool" / "REFERENCE.md").read_text()
COMMANDS = typer.main.get_command(app).commands

INPUTS = {
    "statistics": "mean and covariance of features",
    "spatial": "mean and covariance of spatial features",
    "logits": "class logits",
    "features": "features",
    "training": "features, also of the training images",
    "distances": "Fréchet distances by `inception` and the five of timm",
    "images": "pixels",
    "latents": "latents",
    "paths": "trajectories",
}
"""What metrics are computed from, in words."""

OF_FEATURES = {"statistics", "spatial", "logits", "features", "training"}
"""Those that an extractor makes of images."""

NETWORK_NAMES = {"dit": "DiT", "ditdh": "DiTDH"}


def coded(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def solver_rows() -> Iterator[tuple[str, ...]]:
    for name, entry in SOLVERS.items():
        flags = [flag for flag, has in (("--substeps", entry.substeps), ("--spectral", entry.spectral)) if has]
        order = "`--order`, 1 or 2" if entry.order is None else str(entry.order)
        yield f"`{name}`", f"a {entry.on}", entry.help, order, "yes" if entry.noisy else "no", coded(tuple(flags))


def guidance_rows() -> Iterator[tuple[str, ...]]:
    for name, entry in GUIDANCES.items():
        for on, form in entry.forms.items():
            yield f"`{name}`", f"a {on}", entry.help, str(form.scale), f"{form.scale.default:g}"


def tokenizer_rows() -> Iterator[tuple[str, ...]]:
    for name, row in TOKENIZERS.items():
        yield f"`{name}`", row.help, coded(tuple(f"--{setting.replace('_', '-')}" for setting in row.settings))


def network_rows() -> Iterator[tuple[str, ...]]:
    for kind, entry in NETWORKS.items():
        for name, size in entry.sizes.items():
            depth, width, heads, *wide = size.dimensions
            head = " x ".join(map(str, wide[:2])) or "none"
            yield f"`{name}`", NETWORK_NAMES[kind], f"{depth} x {width}", str(heads), head, f"{size.lr:g}"


def metric_rows() -> Iterator[tuple[str, ...]]:
    for row in METRICS:
        extractors = tuple(
            extractor.name
            for extractor in EXTRACTORS
            if extractor.allows(row) and (extractor.classifies or row.needs not in ("spatial", "logits"))
        )
        by = coded(extractors) if row.needs in OF_FEATURES else "none"
        for metric in row.metrics:
            labels = ", ".join([metric.label, *(f"{label} ({name})" for name, label in metric.names)])
            yield f"`{metric.name}`", labels, metric.better or "nearer to real images", INPUTS[row.needs], by


def extractor_rows() -> Iterator[tuple[str, ...]]:
    for row in EXTRACTORS:
        yield f"`{row.name}`", row.title, row.help, row.weights


def preset_rows() -> Iterator[tuple[str, ...]]:
    for name in preset_names():
        preset = load_preset(name)
        yield f"`{name}`", preset.source, preset.expect


TABLES = {
    "Solvers": solver_rows,
    "Guidance": guidance_rows,
    "Tokenizers": tokenizer_rows,
    "Networks": network_rows,
    "Metrics": metric_rows,
    "Feature extractors": extractor_rows,
    "Presets": preset_rows,
}


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def as_line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("title", TABLES)
def test_a_table_of_the_page_is_the_table_of_the_code(title: str) -> None:
    """When this fails the expected lines are what belongs on the page."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")][2:]
    assert lines == [as_line(cells) for cells in TABLES[title]()]


def test_every_kind_of_input_of_a_metric_has_words() -> None:
    assert set(INPUTS) == set(get_args(Need))


def test_the_parts_of_a_method_are_named() -> None:
    objective = settings_of(MethodSettings)["objective"].choices
    parts = (get_args(kind) for kind in (SourceName, CouplingName, Condition, PolicyName))
    names = {name for choices in (objective, *parts) for name in choices}
    assert not {name for name in names if f"`{name}`" not in section("Methods and training")}


FLAGS_OF_A_COMMAND = sorted(set(re.findall(r"`([a-z-]+(?: --[a-z-]+)+)`", PAGE)))


@pytest.mark.parametrize("words", FLAGS_OF_A_COMMAND)
def test_a_command_has_the_flags_that_the_page_gives_it(words: str) -> None:
    command, *flags = words.split()
    has = {flag for option in COMMANDS[command].params for flag in option.opts}
    assert set(flags) <= has
