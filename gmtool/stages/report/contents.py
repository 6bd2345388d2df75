"""What stands on the page, section by section, before it is HTML."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gmtool.artifacts.reconstruction import PAIRS, WORST
from gmtool.artifacts.run import PREVIEWS
from gmtool.artifacts.samples import GRID
from gmtool.errors import GmtoolError, UserError
from gmtool.evaluation.references import training_input
from gmtool.progress import Progress
from gmtool.stages.report.collection import Artifact, Collection
from gmtool.stages.report.config import ReportConfig
from gmtool.stages.report.curves import Curve, panels_of, read_curves
from gmtool.stages.report.layout import Drawing, lay_out
from gmtool.stages.report.pictures import png_of, read_picture
from gmtool.stages.report.provenance import Graph, trace
from gmtool.stages.report.real_images import real_grid
from gmtool.stages.report.results import ResultTable, likelihood_tables, reconstruction_tables
from gmtool.stages.report.scores import ScoreTable, drawn_with, score_tables, sweep_table
from gmtool.stages.report.settings_table import SettingsTable, compare
from gmtool.training.checkpoint import list_checkpoints

TRAINED = ("run", "decoder")
"""Kinds of artifacts that have training curves and previews."""


@dataclass(frozen=True)
class Shown:
    """A picture's place on the page. picture: its number. again: whether it stands on the page before."""

    picture: int
    caption: str
    alternative: str
    again: bool = False


@dataclass(frozen=True)
class Strip:
    """The grids of a run's samples, in the order of their evaluations, real images last; or of reconstructions."""

    run: str
    pictures: tuple[Shown, ...]


@dataclass(frozen=True)
class RunFacts:
    """A run, or the training of a decoder, in a line. steps: taken, of those it was to take. curves: by figure."""

    artifact: Artifact
    steps: int
    parameters: int
    curves: Mapping[str, Curve]
    previews: tuple[tuple[int, Shown], ...]


@dataclass(frozen=True)
class SettingsOfKind:
    """Runs of one kind, and their settings beside each other."""

    runs: tuple[RunFacts, ...]
    table: SettingsTable


@dataclass(frozen=True)
class Mixture:
    """A mixture: what its fit found, by name, and its picture."""

    artifact: Artifact
    facts: tuple[tuple[str, str], ...]
    picture: Shown | None


@dataclass(frozen=True)
class Contents:
    """The contents of a page. files: the PNG files of its pictures by their numbers. left_out: a line each."""

    title: str
    collection: Collection
    run_names: tuple[str, ...]
    tables: tuple[ScoreTable, ...]
    sweeps: tuple[tuple[Artifact, ScoreTable], ...]
    strips: tuple[Strip, ...]
    likelihoods: tuple[ResultTable, ...]
    reconstructions: tuple[ResultTable, ...]
    pairs: tuple[Strip, ...]
    runs: tuple[RunFacts, ...]
    panels: Mapping[str, tuple[str, tuple[str, ...]]]
    settings: tuple[SettingsOfKind, ...]
    mixtures: tuple[Mixture, ...]
    graph: Graph
    drawing: Drawing
    files: tuple[bytes, ...]
    left_out: tuple[str, ...]

    @property
    def preview_steps(self) -> tuple[int, ...]:
        """The steps that some run has a preview of."""
        return tuple(sorted({step for run in self.runs for step, _ in run.previews}))


@dataclass
class _Gallery:
    """The pictures of a page as they come, each file once; wrong: a line on each that cannot be read."""

    files: dict[bytes, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def add(self, file: bytes, caption: str, alternative: str) -> Shown:
        again = file in self.files
        return Shown(self.files.setdefault(file, len(self.files)), caption, alternative, again)

    def read(self, path: Path, caption: str, alternative: str) -> Shown | None:
        """The picture at ``path``; None where there is none, or it is damaged."""
        if not path.is_file():
            return None
        try:
            return self.add(read_picture(path), caption, alternative)
        except GmtoolError as error:
            self.wrong.append(str(error))
            return None


def contents_of(collection: Collection, config: ReportConfig, progress: Progress) -> Contents:
    """Read all that the page shows. What is damaged is left out, with a line that names it."""
    kinds = (*TRAINED, "samples", "gmm", "reconstruction")
    shown = [artifact for kind in kinds for artifact in collection.of(kind)]
    progress.begin("report", len(shown), "artifacts")
    graph, gallery = trace(collection), _Gallery()
    run_of = _runs_of_samples(collection, graph)
    samples = collection.of("samples")
    strips = _strips(samples, run_of, config, gallery, progress)
    runs = tuple(_run(artifact, config, gallery, progress) for kind in TRAINED for artifact in collection.of(kind))
    mixtures = tuple(_mixture(artifact, gallery, progress) for artifact in collection.of("gmm"))
    pairs = tuple(_pairs(artifact, gallery, progress) for artifact in collection.of("reconstruction"))
    progress.end()
    sweeps = tuple(
        (artifact, sweep_table(artifact.sweep, _runs_of_sweep(artifact, collection)))
        for artifact in collection.of("sweep")
        if artifact.sweep
    )
    names = [run.artifact.name for run in runs]
    names += [run_of[artifact] for artifact in samples]
    names += [row.scored.run for _, table in sweeps for row in table.rows]
    return Contents(
        title=config.title or collection.root.name or str(collection.root),
        collection=collection,
        run_names=tuple(dict.fromkeys(names)),
        tables=score_tables(samples, run_of),
        sweeps=sweeps,
        strips=strips,
        likelihoods=likelihood_tables(collection.of("likelihood"), gallery.wrong),
        reconstructions=reconstruction_tables(collection.of("reconstruction"), gallery.wrong),
        pairs=tuple(strip for strip in pairs if strip.pictures),
        runs=runs,
        panels=panels_of([run.curves for run in runs]),
        settings=tuple(
            SettingsOfKind(alike, compare([run.artifact.manifest.config for run in alike]))
            for kind in TRAINED
            if (alike := tuple(run for run in runs if run.artifact.kind == kind))
        ),
        mixtures=mixtures,
        graph=graph,
        drawing=lay_out(graph),
        files=tuple(gallery.files),
        left_out=(*collection.left_out, *gallery.wrong),
    )


def _pairs(artifact: Artifact, gallery: _Gallery, progress: Progress) -> Strip:
    """The grids of pairs of a folder of reconstructions."""
    grids = ((PAIRS, "the first images"), (WORST, "the worst"))
    pictures = (
        gallery.read(
            artifact.path / name, words, f"Pairs of {artifact.name}, image left, reconstruction right: {words}"
        )
        for name, words in grids
    )
    progress.advance()
    return Strip(artifact.name, tuple(picture for picture in pictures if picture is not None))


def _runs_of_samples(collection: Collection, graph: Graph) -> dict[Artifact, str]:
    """The name of the run that each set of samples was drawn from."""
    run_of = {}
    for samples in collection.of("samples"):
        parents = [graph.nodes[key] for key in graph.parents(f"samples {samples.path}")]
        run_of[samples] = next((node.name for node in parents if node.kind == "run"), "unknown run")
    return run_of


def _runs_of_sweep(sweep: Artifact, collection: Collection) -> dict[str, str]:
    """The names of runs by how a sweep calls them: those of the report's own runs, where it is about them."""
    names = {str(run.path): run.name for run in collection.of("run")}
    recorded = {Path(used.path).name: names.get(used.path) for used in sweep.manifest.inputs if used.role == "run"}
    called = {point.run for point in sweep.sweep.points} if sweep.sweep else set()
    return {run: recorded.get(Path(run).name) or run for run in called}


def _strips(
    samples: Sequence[Artifact],
    run_of: Mapping[Artifact, str],
    config: ReportConfig,
    gallery: _Gallery,
    progress: Progress,
) -> tuple[Strip, ...]:
    apart = compare(
        [drawn_with(artifact.manifest.config, artifact.manifest.details.get("plan", {})) for artifact in samples]
    )
    words = {artifact: _words(apart, index) for index, artifact in enumerate(samples)}
    shown: dict[str, list[tuple[int, Shown]]] = {}
    real: dict[str, Shown] = {}
    for artifact in samples:
        run, steps = run_of[artifact], int(artifact.manifest.details.get("plan", {}).get("steps", 0))
        picture = gallery.read(artifact.path / GRID, words[artifact], f"A grid of samples of {run}: {words[artifact]}")
        if picture is not None:
            shown.setdefault(run, []).append((steps, picture))
            if config.real and run not in real:
                grid = _real(artifact, gallery)
                real |= {} if grid is None else {run: grid}
        progress.advance()
    return tuple(
        Strip(
            run,
            tuple(picture for _, picture in sorted(pictures, key=lambda pair: pair[0]))
            + ((real[run],) if run in real else ()),
        )
        for run, pictures in shown.items()
    )


def _words(apart: SettingsTable, index: int) -> str:
    """How a set of samples was drawn, as far as others were drawn otherwise: "4 steps, seed 1"."""
    texts = {name.removeprefix("--").replace("-", " "): values[index] for name, values in apart.differing.items()}
    if not texts:
        return "samples"
    steps = [f"{texts['steps']} step{'' if texts.pop('steps') == '1' else 's'}"] if "steps" in texts else []
    return ", ".join([*steps, *(f"{name} {text}" for name, text in texts.items())])


def _real(samples: Artifact, gallery: _Gallery) -> Shown | None:
    try:
        recorded = training_input(samples)
    except UserError:  # its run or teacher is gone
        recorded = None
    grid = None if recorded is None else real_grid(samples.path, Path(recorded.path), recorded.fingerprint)
    return (
        None if grid is None else gallery.add(png_of(grid), "real images", "A grid of real images of the same classes")
    )


def _run(run: Artifact, config: ReportConfig, gallery: _Gallery, progress: Progress) -> RunFacts:
    try:
        curves = read_curves(run.path)
    except GmtoolError as error:
        gallery.wrong.append(str(error))
        curves = {}
    checkpoints = list_checkpoints(run.path / "checkpoints")
    previews = []
    for step, path in _spread(_previews(run.path), config.previews):
        picture = gallery.read(path, f"step {step:,}", f"A grid of samples of {run.name} after {step:,} training steps")
        if picture is not None:
            previews.append((step, picture))
    progress.advance()
    return RunFacts(
        run,
        max((checkpoint.step for checkpoint in checkpoints), default=0),
        int(run.manifest.details.get("parameters", 0)),
        curves,
        tuple(previews),
    )


def _previews(run: Path) -> list[tuple[int, Path]]:
    folder = run / PREVIEWS
    names = folder.glob("step-*.png") if folder.is_dir() else ()
    return sorted((int(step[1]), path) for path in names if (step := re.fullmatch(r"step-(\d+)\.png", path.name)))


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """So many of a sequence, evenly spaced, the last among them."""
    if len(items) <= count:
        return list(items)
    return [
        items[len(items) - 1 - (count - 1 - index) * (len(items) - 1) // max(count - 1, 1)] for index in range(count)
    ]


def _mixture(gmm: Artifact, gallery: _Gallery, progress: Progress) -> Mixture:
    details, config = gmm.manifest.details, gmm.manifest.config
    size = details.get("descriptor_size") or 1
    facts = [("modes", f"{details['modes']:,}")] if "modes" in details else []
    if "populated" in details:
        facts.append(("populated modes", f"{details['populated']:,}"))
    if "data" in details:
        facts.append(("images", f"{details['data']:,}"))
    for name, words in (("log_likelihood", "fitted"), ("held_out_log_likelihood", "held-out")):
        if details.get(name) is not None:
            facts.append((f"log-likelihood of {words} images, nats per dimension", f"{details[name] / size:.4f}"))
    if "em_iterations" in details:
        ending = "" if details.get("converged") else ", not converged"
        facts.append(("EM iterations", f"{details['em_iterations']:,}{ending}"))
    facts += [(name, str(config[name])) for name in ("assignment", "covariance") if name in config]
    alternative = f"The mixture {gmm.name}: images per mode, log-likelihood, distances, means of its largest modes"
    picture = gallery.read(gmm.path.with_suffix(".png"), gmm.name, alternative)
    progress.advance()
    return Mixture(gmm, tuple(facts), picture)
