"""What ``gmtool sweep`` found: a row for each point of a grid of sampling settings and each seed.

The rows stand in the details of ``sweep.json``, which is a manifest, and as a table in ``sweep.csv``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gmtool.artifacts.files import reading
from gmtool.artifacts.manifest import expect_kind, parse_manifest
from gmtool.artifacts.sweep import MANIFEST
from gmtool.errors import UserError
from gmtool.evaluation.report import Figure, parse_figure
from gmtool.words import counted

RUN = "run"
"""The axis of several runs."""


@dataclass(frozen=True)
class Axis:
    """A setting that took several values.

    setting: its name (`gmtool.settings.Setting.name`), or `RUN`. values: as JSON values, in the order given.
    """

    setting: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class SweepPoint:
    """The scores of the samples of one run by one set of settings from one seed.

    key: a digest of everything that the figures depend on. run: its folder as the user named it. settings: this point's
    values of the axes, by name, without those that have no effect here. plan: how the samples were drawn, the fields of
    `gmtool.sampling.plan.SamplePlan` by name. checkpoint: the step of the weights. evaluations: of the network for
    one sample, all that guidance takes included. images: number of samples. figures: none where the samples were not
    finite. command: what draws and scores the same.
    """

    key: str
    run: str
    settings: Mapping[str, Any]
    plan: Mapping[str, Any]
    seed: int
    checkpoint: int
    evaluations: int
    images: int
    figures: tuple[Figure, ...]
    command: str

    def figure(self, name: str) -> Figure | None:
        """The figure of a metric, by its name in `Sweep.metrics`; None where it was not computed."""
        features, metric = split_name(name)
        return next(
            (figure for figure in self.figures if figure.metric == metric and features in ("", figure.features)), None
        )

    @property
    def group(self) -> tuple[Any, ...]:
        """A hashable key that is equal for points that differ only in the seed."""
        return (self.run, *sorted((name, str(value)) for name, value in self.settings.items()))


@dataclass(frozen=True)
class Skipped:
    """Combinations that `gmtool sample` would refuse: how many, and its reason."""

    count: int
    reason: str

    def __str__(self) -> str:
        return f"skipped {counted(self.count, 'point')}: {self.reason}"


@dataclass(frozen=True)
class Sweep:
    """A grid that was drawn and scored.

    axes: the settings that took several values. points: a row for each point and seed, those that differ in the seed
    alone next to each other. features: the extractor's name in `gmtool.evaluation.extractors`; extractor: exactly
    which. reference, reference_kind, reference_fingerprint: what the samples were compared with.
    """

    axes: tuple[Axis, ...]
    points: tuple[SweepPoint, ...]
    skipped: tuple[Skipped, ...]
    features: str
    extractor: str
    reference: str
    reference_kind: str
    reference_fingerprint: str

    def axis(self, setting: str) -> Axis | None:
        """The axis of a setting, or None where it took one value."""
        return next((axis for axis in self.axes if axis.setting == setting), None)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the metrics that some point has, in their order.

        Those on another extractor's features than the first are ``EXTRACTOR.METRIC``.
        """
        pairs = ((figure.features, figure.metric) for point in self.points for figure in point.figures)
        own = ("", self.features)
        return tuple(dict.fromkeys(metric if features in own else f"{features}.{metric}" for features, metric in pairs))

    @property
    def groups(self) -> tuple[tuple[SweepPoint, ...], ...]:
        """The points that differ in the seed alone, together, in their order."""
        groups: dict[tuple[Any, ...], list[SweepPoint]] = {}
        for point in self.points:
            groups.setdefault(point.group, []).append(point)
        return tuple(tuple(group) for group in groups.values())

    def to_details(self) -> Mapping[str, Any]:
        """The sweep as JSON values, which `parse_sweep` reads."""
        return asdict(self)

    def to_csv(self) -> str:
        """The points as comma-separated values: settings, metrics, the same metrics of real images, the command."""
        axes = [axis.setting for axis in self.axes if axis.setting != RUN]
        axes += [name for name in ("solver", "steps", "guidance", "guidance_scale") if name not in axes]
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        real = [f"real_{metric}" for metric in self.metrics]
        table.writerow(
            [RUN, "checkpoint", *axes, "seed", "evaluations", "images", *self.metrics, *real, "command"],
        )
        for point in self.points:
            figures = [point.figure(metric) for metric in self.metrics]
            generated = ["" if figure is None else figure.generated.value for figure in figures]
            floors = ["" if figure is None or figure.real is None else figure.real.value for figure in figures]
            settings = [setting_of(point, name) for name in axes]
            counts = [point.seed, point.evaluations, point.images]
            table.writerow([point.run, point.checkpoint, *settings, *counts, *generated, *floors, point.command])
        return text.getvalue()


def split_name(name: str) -> tuple[str, str]:
    """The extractor, "" for the first, and the metric of a name in `Sweep.metrics`."""
    features, _, metric = name.rpartition(".")
    return features, metric


IN_PLAN = {"guidance_scale": "scale"}
"""Settings that `SamplePlan` calls otherwise."""


def setting_of(point: SweepPoint, name: str) -> Any:
    """A setting of a point: its own value, else the one that the plan settled; "" where it has no effect."""
    if name in point.settings:
        return point.settings[name]
    if name == "guidance_scale" and point.plan["guidance"] == "none":
        return ""
    return point.plan.get(IN_PLAN.get(name, name), "")


def parse_sweep(details: Mapping[str, Any]) -> Sweep:
    """The sweep in the JSON values that `Sweep.to_details` gave. Raises KeyError or TypeError for others."""
    return Sweep(
        **{
            **details,
            "axes": tuple(Axis(axis["setting"], tuple(axis["values"])) for axis in details["axes"]),
            "points": tuple(parse_point(point) for point in details["points"]),
            "skipped": tuple(Skipped(**skipped) for skipped in details["skipped"]),
        }
    )


def parse_point(values: Mapping[str, Any]) -> SweepPoint:
    """A point of the JSON values that ``dataclasses.asdict`` gives. Raises KeyError or TypeError for others."""
    return SweepPoint(**{**values, "figures": tuple(parse_figure(figure) for figure in values["figures"])})


def read_sweep(path: Path) -> Sweep:
    """The sweep in a folder that ``gmtool sweep`` wrote, or in its ``sweep.json``.

    Raises UserError when it is missing, damaged or something else.
    """
    record = path / MANIFEST if path.is_dir() else path
    if not record.is_file():
        raise UserError(f"{record} does not exist: give a folder that `gmtool sweep` wrote")
    manifest = parse_manifest(record.read_bytes(), record)
    expect_kind(manifest, "sweep", path)
    with reading(record, "run gmtool sweep again"):
        return parse_sweep(manifest.details)
