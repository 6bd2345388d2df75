"""The command that made an artifact, as a user would type it: its record says all of it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gmtool.artifacts.manifest import Manifest
from gmtool.artifacts.run import IMPORTED
from gmtool.evaluation.report import Report
from gmtool.settings import Setting, is_repeated, settings_of
from gmtool.stages.import_run.config import ImportConfig
from gmtool.stages.presets import STAGES

CONFIGS: Mapping[str, type] = {**STAGES, "import": ImportConfig}
"""Settings of the commands, by which defaults are told from what was chosen."""

READS: Mapping[str, tuple[str, ...]] = {
    "encode": ("images",),
    "fit-gmm": ("latents",),
    "train": ("latents",),
    "sample": ("run",),
    "distill": ("teacher",),
    "train-decoder": ("images",),
    "sweep": ("run",),
    "reconstruct": ("images",),
    "likelihood": ("images", "latents", "run"),
    "import": ("source",),
}
"""The roles of the inputs that a command is told first, in their order."""

BY_FLAG = ("likelihood",)
"""Commands that are told what to write by ``--output``."""


def command_of(manifest: Manifest, path: str, inputs: Mapping[str, Sequence[str]]) -> str:
    """The command that made an artifact; "" where its record does not tell it.

    path: where it lies. inputs: role -> paths. Flags that have their default values are left out.
    """
    config = manifest.config
    if manifest.stage == "import":  # whose settings are kept apart from those that the run was trained with
        if IMPORTED not in manifest.details:  # a mixture, or of an earlier version
            return ""
        config = manifest.details[IMPORTED]
        inputs = {name: [shown_path(Path(value))] for name, value in config.items() if isinstance(value, str)}
    if manifest.stage not in CONFIGS:
        return ""
    words = ["gmtool", manifest.stage]
    words += [given for role in READS.get(manifest.stage, ()) for given in dict.fromkeys(inputs.get(role, ()))]
    words += ["--output", path] if manifest.stage in BY_FLAG else [path]
    return shlex.join([*words, *_flags(settings_of(CONFIGS[manifest.stage]), config, inputs)])


def evaluation_of(report: Report, samples: str) -> str:
    """The command that scored samples, as far as the report tells it."""
    words = ["gmtool", "eval", samples, "--reference", report.reference, "--features", ",".join(report.extractors)]
    return shlex.join([*words, *(["--seed", str(report.seed)] if report.seed else [])])


def shown_path(path: Path) -> str:
    """A path as a user would type it: relative to the current folder if it lies in that."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _flags(
    known: Mapping[str, Setting], config: Mapping[str, Any], inputs: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """The words of the known settings that are not at their defaults."""
    for name, setting in known.items():
        value, files = config.get(name), list(dict.fromkeys(inputs.get(name, ())))
        if is_repeated(setting.kind):
            value = files or value
        elif len(files) == 1:  # also one that was found by itself; of several, each run has its own
            value = files[0]
        if not _is_default(setting, value):
            yield from setting.typed(value)


def _is_default(setting: Setting, value: Any) -> bool:
    default = list(setting.default) if isinstance(setting.default, tuple) else setting.default
    if isinstance(value, bool) and not value and default is None:
        return True  # what was left to the command, and settled as no
    return value == (str(default) if isinstance(default, Path) else default)
