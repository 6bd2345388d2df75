"""The command that made an artifact, as a user would type it: its record says all of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gmtool.artifacts.manifest import Manifest
from gmtool.evaluation.report import Report
from gmtool.settings import Setting, as_text, flag, is_repeated, settings_of
from gmtool.stages.import_run.config import ImportConfig
from gmtool.stages.likelihood.config import LikelihoodConfig
from gmtool.stages.presets import STAGES

CONFIGS: Mapping[str, type] = {**STAGES, "import": ImportConfig, "likelihood": LikelihoodConfig}
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
}
"""The roles of the inputs that a command is told first, in their order."""

BY_FLAG = ("likelihood",)
"""Commands that are told what to write by ``--output``."""


def command_of(manifest: Manifest, path: str, inputs: Mapping[str, Sequence[str]]) -> str:
    """The command that made an artifact.

    path: where it lies. inputs: role -> paths. Flags that have their default values are left out.
    """
    words = ["gmtool", manifest.stage]
    words += [given for role in READS.get(manifest.stage, ()) for given in inputs.get(role, ())]
    words += ["--output", path] if manifest.stage in BY_FLAG else [path]
    return " ".join((shlex.join(words), *_flags(manifest.stage, manifest.config, inputs)))


def evaluation_of(report: Report, samples: str) -> str:
    """The command that scored samples, as far as the report tells it."""
    words = ["gmtool", "eval", samples, "--reference", report.reference, "--features", ",".join(report.extractors)]
    return shlex.join([*words, *(["--seed", str(report.seed)] if report.seed else [])])


def _flags(stage: str, config: Mapping[str, Any], inputs: Mapping[str, Sequence[str]]) -> list[str]:
    known = settings_of(CONFIGS[stage]) if stage in CONFIGS else {}
    flags = []
    for name, value in config.items():
        if name in inputs:  # an artifact that was found by itself
            value = inputs[name][0]
        if value is None or value in ((), []) or (name in known and _is_default(known[name], value)):
            continue
        if isinstance(value, bool):
            flags += [flag(name)] if value else ["--no-" + flag(name)[2:]] if name in known else []
        elif isinstance(value, (list, tuple)) and name in known:
            words = [shlex.quote(str(item)) for item in value]
            several = is_repeated(known[name].kind)
            flags += [f"{flag(name)} {word}" for word in words] if several else [f"{flag(name)} {' '.join(words)}"]
        else:
            flags.append(f"{flag(name)} {shlex.quote(as_text(value))}")
    return flags


def _is_default(setting: Setting, value: Any) -> bool:
    default = list(setting.default) if isinstance(setting.default, tuple) else setting.default
    if isinstance(value, bool) and not value and default is None:
        return True  # what was left to the command, and settled as no
    return value == (str(default) if isinstance(default, Path) else default)
