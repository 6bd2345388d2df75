"""What a report is about: the artifacts that a user names, and those in the folders that they name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gmtool.artifacts.files import reading
from gmtool.artifacts.manifest import RECORDS, Manifest
from gmtool.artifacts.run import CHECKPOINTS, CONFIG, STATISTICS
from gmtool.artifacts.samples import METRICS
from gmtool.errors import GmtoolError, UserError
from gmtool.evaluation.report import Report, parse_report
from gmtool.evaluation.sweep_table import Sweep, read_sweep
from gmtool.settings import quoted
from gmtool.stages.inspect.run import open_manifest

DEPTH = 3
"""Levels of folders, below one that a user names, that are searched for artifacts."""

FILES = (".h5", ".hdf5", "likelihood.json")
"""Names of artifacts that are files end so."""


@dataclass(frozen=True, eq=False)
class Artifact:
    """Something that gmtool wrote. name: short, and no other artifact's of the report.

    scores: what ``gmtool eval`` found of samples; None where it has not been run. sweep: what a sweep holds.
    """

    path: Path
    name: str
    manifest: Manifest
    scores: Report | None = None
    sweep: Sweep | None = None

    @property
    def kind(self) -> str:
        """A key of `gmtool.artifacts.manifest.KINDS`."""
        return self.manifest.kind


@dataclass(frozen=True)
class Collection:
    """The artifacts of a report, in the order in which they were named; left_out: a line on each that is damaged.

    root: the folder that holds all of them.
    """

    root: Path
    artifacts: tuple[Artifact, ...]
    left_out: tuple[str, ...]

    def of(self, kind: str) -> tuple[Artifact, ...]:
        """The artifacts of a kind."""
        return tuple(artifact for artifact in self.artifacts if artifact.kind == kind)


def collect(paths: Sequence[Path]) -> Collection:
    """Open what the paths name, and what lies in those that are plain folders.

    Raises UserError for a path that is missing, damaged or nothing of gmtool's, and where nothing is found at all. What
    is damaged inside a folder is left out.
    """
    manifests: dict[Path, Manifest] = {}
    left_out: list[str] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist: give what gmtool wrote, or a folder that holds it")
        if _may_be_artifact(path) or path.is_file():
            manifests.setdefault(path.resolve(), open_manifest(path))
            continue
        for inside in _inside(path, DEPTH, left_out):
            if inside.resolve() not in manifests:
                try:
                    manifests[inside.resolve()] = open_manifest(inside)
                except GmtoolError as error:
                    left_out.append(str(error))
    if not manifests:
        why = f" that can be read ({left_out[0]})" if left_out else ""
        where = ", ".join(map(str, paths))
        raise UserError(f"{where} holds nothing of gmtool's{why}: give runs, samples, or a folder that holds them")
    root = Path(os.path.commonpath([path.parent for path in manifests]))
    artifacts = []
    for path, manifest in manifests.items():
        scores, wrong = _scores(path, manifest)
        left_out += wrong
        sweep = read_sweep(path) if manifest.kind == "sweep" else None
        artifacts.append(Artifact(path, path.relative_to(root).as_posix(), manifest, scores, sweep))
    return Collection(root, tuple(artifacts), tuple(left_out))


def _may_be_artifact(path: Path) -> bool:
    return any((path / name).is_file() for name in RECORDS.values())


def _inside(folder: Path, depth: int, left_out: list[str]) -> Iterator[Path]:
    """What may be artifacts in a folder and in its folders, by name; hidden ones and links to folders are passed over.

    The folder of a model of another program holds a config.json too, but nothing else of a run. left_out: grows by a
    line on each folder that cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        left_out.append(f"{folder} cannot be read ({str(error.strerror).lower()})")
        return
    for entry in sorted(visible, key=lambda entry: entry.name):
        path = folder / entry.name
        if not entry.is_dir(follow_symlinks=False):
            if path.name.endswith(FILES):
                yield path
        elif not _may_be_artifact(path):
            yield from _inside(path, depth - 1, left_out) if depth > 1 else ()
        elif not (path / CONFIG).is_file() or (path / STATISTICS).exists() or (path / CHECKPOINTS).exists():
            yield path


def _scores(folder: Path, manifest: Manifest) -> tuple[Report | None, list[str]]:
    """What eval found of samples, and what is wrong with it; None for what is no samples, or has no scores."""
    path = folder / METRICS
    if manifest.kind != "samples" or not path.is_file():
        return None, []
    repair = f"run gmtool eval {quoted(folder)} again"
    try:
        with reading(path, repair):
            report = parse_report(path.read_text())
            if report.samples_fingerprint != manifest.fingerprint:
                raise UserError(f"{path} is about other samples than those beside it: {repair}")
            return report, []
    except GmtoolError as error:
        return None, [str(error)]
