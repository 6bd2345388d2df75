"""Tables of what ``gmtool likelihood`` and ``gmtool reconstruct`` found, a row each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gmtool.artifacts.files import reading
from gmtool.errors import GmtoolError
from gmtool.evaluation.metrics import Better
from gmtool.stages.likelihood.report import LikelihoodReport, parse_likelihood
from gmtool.stages.reconstruct.report import BETTER, LABELS, ReconstructionReport, parse_reconstruction
from gmtool.stages.report.collection import Artifact

T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """A number, and what it is known to: a standard error, or a deviation over images; None where it has none."""

    value: float
    spread: float | None = None


@dataclass(frozen=True)
class ResultColumn:
    """A figure of a table of results."""

    label: str
    better: Better


@dataclass(frozen=True)
class ResultRow:
    """A result: what it is of, in words, by column; its numbers, None where it has none; and which are the best."""

    artifact: Artifact
    facts: tuple[str, ...]
    cells: tuple[Cell | None, ...]
    best: frozenset[int] = frozenset()


@dataclass(frozen=True)
class ResultTable:
    """Results of the same data. facts: the titles of the columns of words."""

    title: str
    facts: tuple[str, ...]
    columns: tuple[ResultColumn, ...]
    rows: tuple[ResultRow, ...]


def likelihood_tables(artifacts: Sequence[Artifact], wrong: list[str]) -> tuple[ResultTable, ...]:
    """A table for each set of held-out data; what is damaged is told in ``wrong``."""
    columns = tuple(
        ResultColumn(f"{words}, nats per dimension", "lower")
        for words in ("latents", "normalised latents", "velocity over time")
    )
    groups: dict[tuple[str, int, int], list[tuple[Artifact, LikelihoodReport]]] = {}
    for artifact, report in _parsed(artifacts, parse_likelihood, wrong):
        groups.setdefault((report.data_fingerprint, report.count, report.dimensions), []).append((artifact, report))
    return tuple(
        ResultTable(
            f"{group[0][1].data}, {count:,} images of {dimensions:,} numbers",
            ("run", "step", "value"),
            columns,
            _marked(
                [
                    ResultRow(
                        artifact,
                        (Path(report.run).name or report.run, f"{report.step:,}", _kind(report)),
                        tuple(
                            None if pair is None else Cell(*pair)
                            for pair in (report.latents, report.normalised, report.velocity)
                        ),
                    )
                    for artifact, report in group
                ],
                columns,
            ),
        )
        for (_, count, dimensions), group in groups.items()
    )


def reconstruction_tables(artifacts: Sequence[Artifact], wrong: list[str]) -> tuple[ResultTable, ...]:
    """A table for each set of images; what is damaged is told in ``wrong``."""
    groups: dict[tuple[str, int], list[tuple[Artifact, ReconstructionReport]]] = {}
    for artifact, report in _parsed(artifacts, parse_reconstruction, wrong):
        images = artifact.manifest.input("images")
        key = (report.images if images is None else images.fingerprint, report.count)
        groups.setdefault(key, []).append((artifact, report))
    return tuple(_of_reconstructions(group) for group in groups.values())


def _of_reconstructions(group: Sequence[tuple[Artifact, ReconstructionReport]]) -> ResultTable:
    qualities = [name for name in LABELS if any(name in report.qualities for _, report in group)]
    extractors = list(dict.fromkeys(distance.extractor for _, report in group for distance in report.distances))
    columns = (
        *(ResultColumn(LABELS[name], BETTER[name]) for name in qualities),
        *(ResultColumn(f"Fréchet distance, {name}", "lower") for name in extractors),
    )
    rows = []
    for artifact, report in group:
        distances = {distance.extractor: distance.value for distance in report.distances}
        cells = [
            Cell(report.qualities[name].mean, report.qualities[name].std) if name in report.qualities else None
            for name in qualities
        ]
        cells += [Cell(distances[name]) if name in distances else None for name in extractors]
        decoder = "its own" if report.decoder is None else Path(report.decoder).name
        rows.append(ResultRow(artifact, (Path(report.tokenizer).name, decoder), tuple(cells)))
    first = group[0][1]
    return ResultTable(
        f"{first.images}, {first.count:,} images", ("encoder", "decoder"), columns, _marked(rows, columns)
    )


def _kind(report: LikelihoodReport) -> str:
    return "upper bound" if report.bound else "exact but for the solver"


def _marked(rows: Sequence[ResultRow], columns: Sequence[ResultColumn]) -> tuple[ResultRow, ...]:
    """The rows with the best of each column, where there are several to choose from."""
    best: list[frozenset[int]] = [frozenset()] * len(rows)
    for number, column in enumerate(columns):
        values = {index: cell.value for index, row in enumerate(rows) if (cell := row.cells[number]) is not None}
        if len(values) > 1:
            least = (min if column.better == "lower" else max)(values.values())
            for index, value in values.items():
                if value == least:
                    best[index] |= {number}
    return tuple(ResultRow(row.artifact, row.facts, row.cells, marks) for row, marks in zip(rows, best, strict=True))


def _parsed(artifacts: Sequence[Artifact], parse: Callable[..., T], wrong: list[str]) -> list[tuple[Artifact, T]]:
    parsed = []
    for artifact in artifacts:
        try:
            with reading(artifact.path, f"run gmtool {artifact.manifest.stage} again"):
                parsed.append((artifact, parse(artifact.manifest.details)))
        except GmtoolError as error:
            wrong.append(str(error))
    return parsed
