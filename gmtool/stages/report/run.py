"""Write the page."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gmtool.artifacts.files import written_aside
from gmtool.progress import Progress
from gmtool.stages.report.config import ReportConfig
from gmtool.stages.report.contents import contents_of
from gmtool.stages.report.plan import check_page, plan_report
from gmtool.stages.report.render import render


@dataclass(frozen=True)
class ReportPage:
    """The page that was written: its path and bytes, and how much of what is on it."""

    path: Path
    bytes: int
    artifacts: int
    left_out: int


def report(
    paths: Sequence[Path], config: ReportConfig, progress: Progress, date: datetime.date | None = None
) -> ReportPage:
    """Write the page about ``paths``, of which the last one may name it; return what was written.

    date: what the page is dated by; None for none. Raises UserError as `plan_report` does; what is damaged inside a
    folder or a run is left out, with a note.
    """
    plan = plan_report(paths, config)
    contents = contents_of(plan.collection, config, progress)
    for line in contents.left_out:
        progress.note(f"left out: {line}")
    content = render(contents, round(config.max_size * 1e6), date).encode()
    check_page(plan.page)
    with written_aside(plan.page) as part:
        part.write_bytes(content)
    return ReportPage(plan.page, len(content), len(plan.collection.artifacts), len(contents.left_out))
