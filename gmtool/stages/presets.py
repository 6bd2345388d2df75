"""Presets: TOML files that name settings of every stage, such as a paper's recipe.

    source = "where the recipe is published"
    expect = "the score that it reaches there"
    [encode]                  # a table per command; its keys are that command's flags without the dashes
    [fit-gmm]
    [train]
    batch-size = 1024
    [sample]
    [eval]
    [sweep]

Those of gmtool lie in ``gmtool/presets/``, and are known by name. Flags on the command line override the preset.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmtool.errors import UserError
from gmtool.settings import config_from_json, expect_type, settings_of
from gmtool.stages.distill.config import DistillConfig
from gmtool.stages.encode.config import EncodeConfig
from gmtool.stages.evaluate.config import EvaluateConfig
from gmtool.stages.fit_gmm.config import FitGmmConfig
from gmtool.stages.likelihood.config import LikelihoodConfig
from gmtool.stages.reconstruct.config import ReconstructConfig
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.sweep.config import SweepConfig
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train_decoder.config import TrainDecoderConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent.parent / "presets"

STAGES: Mapping[str, type] = {
    "encode": EncodeConfig,
    "fit-gmm": FitGmmConfig,
    "train": TrainConfig,
    "train-decoder": TrainDecoderConfig,
    "reconstruct": ReconstructConfig,
    "distill": DistillConfig,
    "sample": SampleConfig,
    "eval": EvaluateConfig,
    "likelihood": LikelihoodConfig,
    "sweep": SweepConfig,
}
"""The commands that read a preset, each its own table, and their settings."""


@dataclass(frozen=True)
class Preset:
    """Settings under a name: their source and the score to expect, in words, and each stage's table.

    settings: command -> field name -> value, for the fields that the preset sets.
    """

    name: str
    source: str
    expect: str
    settings: Mapping[str, Mapping[str, Any]]

    @property
    def heading(self) -> str:
        """Its name, source and the score to expect, over what a dry run prints."""
        return f"{self.name}: {self.source}\nto expect: {self.expect}\n"

    def of(self, stage: str) -> Mapping[str, Any]:
        """The values that the preset sets for a command; none when it has no table for it."""
        return self.settings.get(stage, {})

    def config(self, stage: str) -> Any:
        """The settings of a command, defaults where the preset sets nothing."""
        return config_from_json(STAGES[stage], self.of(stage), f"preset {self.name}")


def preset_names() -> tuple[str, ...]:
    """The presets that come with gmtool."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def load_preset(source: str) -> Preset:
    """The preset of a name, or of a file.

    Raises UserError for a name, table or key that does not exist, naming the nearest one, and for values that a
    command would refuse.
    """
    path = _path_of(source)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # also of bytes that are no text, numbers and lists without end
        raise UserError(f"{path} is not TOML: {error}") from error
    words = {name: values.pop(name, "") for name in ("source", "expect")}
    for name, text in words.items():
        expect_type(str, text, f"{path}: {name}")
    for name, table in values.items():
        if name not in STAGES:
            raise UserError(f"{path}: {name!r:.80} is not known{_nearest(name, [*STAGES, *words])}")
        if not isinstance(table, dict):
            raise UserError(f"{path}: {name} is the table of a command: write [{name}]")
    preset = Preset(
        path.stem, **words, settings={stage: _fields(path, stage, table) for stage, table in values.items()}
    )
    for stage in preset.settings:
        with _of_table(path, stage):
            preset.config(stage)  # refuses what the command would
    return preset


def _path_of(source: str) -> Path:
    """The file of a preset's name, or of a file's. Raises UserError where there is none."""
    if source in preset_names():
        return FOLDER / f"{source}.toml"
    path = Path(source)
    try:
        is_toml_file = path.suffix == ".toml" and path.is_file()
    except (OSError, ValueError):  # a name too long for any file, or with a NUL
        is_toml_file = False
    if not is_toml_file:
        raise UserError(f"--preset {source:.80} is neither a preset nor a .toml file{_nearest(source, preset_names())}")
    return path


def _fields(path: Path, stage: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """A table's values by field name."""
    options = settings_of(STAGES[stage])
    keys = {name.replace("_", "-"): name for name in options}
    values = {}
    for key, value in table.items():
        if key not in keys:
            raise UserError(f"{path}: [{stage}] has no setting {key!r:.80}{_nearest(key, keys)}")
        setting = options[keys[key]]
        option = setting.option
        with _of_table(path, stage):
            # such as a size with its unit, which may be written as on the command line
            read = option.reader(value) if option.reader is not None and isinstance(value, str) else value
        expect_type(setting.kind, read, f"{path}: {key} of [{stage}]")
        values[keys[key]] = read
    return values


@contextmanager
def _of_table(path: Path, stage: str) -> Iterator[None]:
    """Say of which file and table a UserError is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: [{stage}]: {error}") from error


def _nearest(name: str, known: Iterable[str]) -> str:
    """A part of a sentence that names what was perhaps meant, or else all there is."""
    names = sorted(known)
    near = difflib.get_close_matches(name[:80], names, n=3, cutoff=0.4)
    return f": did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(names)}"
