"""The plan of a report and its destination, resolved before the pictures are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gmtool.artifacts.files import check_writable, resolved
from gmtool.artifacts.manifest import KINDS
from gmtool.errors import UserError
from gmtool.forecast import FileSize, Forecast
from gmtool.stages.report.collection import Collection, collect
from gmtool.stages.report.config import ReportConfig
from gmtool.stages.report.render import GENERATOR
from gmtool.words import counted

DEFAULT_PAGE = Path("report.html")
PAGES = (".html", ".htm")
"""A path that ends so, the last one, is the page and not what it is about."""


@dataclass(frozen=True)
class ReportPlan:
    """A resolved report."""

    config: ReportConfig
    collection: Collection
    page: Path

    def forecast(self) -> Forecast:
        """What is read and written."""
        artifacts = self.collection.artifacts
        return Forecast(
            title=f"Would show {counted(len(artifacts), 'artifact')} on one page",
            reads=tuple(FileSize(artifact.path, None) for artifact in artifacts),
            writes=(FileSize(self.page, None),),
            work=tuple(
                (command, f"{len(of_kind)}")
                for kind, (_, command) in KINDS.items()
                if (of_kind := self.collection.of(kind))
            ),
        )


def plan_report(paths: Sequence[Path], config: ReportConfig) -> ReportPlan:
    """Find and open the artifacts, and check the page's place.

    Raises UserError for what cannot be read, and where the page would replace something that is no report.
    """
    page = paths[-1] if paths and paths[-1].suffix.lower() in PAGES else DEFAULT_PAGE
    about = [path for path in paths if path is not page] or [Path()]
    check_page(page)
    return ReportPlan(config, collect(about), page)


def check_page(page: Path) -> None:
    """Raise UserError unless the page can be written, and replaces nothing but an earlier one."""
    check_writable(page, "the page")
    target = resolved(page)
    if target.is_dir():
        raise UserError(f"{page} is a folder: give the page a name that ends in .html")
    if target.exists() and target.stat().st_size:
        with target.open("rb") as file:
            start = file.read(4096)
        if f'<meta name="generator" content="{GENERATOR}'.encode() not in start:
            raise UserError(f"{page} exists and is no page of gmtool report: choose another name, or remove it")
