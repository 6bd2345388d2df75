"""What becomes of a run's figures. A logger is told the step that a run goes on from, then records, a step each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from gmtool.artifacts.files import written_aside

Record = dict[str, float]
"""Figures of a step by name; "step", from 1, is one of them."""


Group = Literal["train", "machine", "samples"]
"""What figures are about: training, how fast it goes, or the quality of samples."""


class Logger(Protocol):
    """Receiver of a run's figures."""

    def begin(self, step: int) -> None:
        """Go on after step ``step``: later records, of steps that will be taken again, are dropped."""

    def write(self, records: Sequence[Record], group: Group = "train") -> None:
        """Take records in, in the order of their steps."""

    def close(self) -> None:
        """The run is over."""


class MetricsFile:
    """``metrics.jsonl``: a line a step, and one for each score of samples.

    How fast it went is left out: a run that was interrupted leaves the same file as one that was not.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, step: int) -> None:
        """See `Logger.begin`."""
        kept = [line for line in _lines(self._path) if line.get("step", 0) <= step]
        with written_aside(self._path) as part:
            part.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def write(self, records: Sequence[Record], group: Group = "train") -> None:
        """See `Logger.write`."""
        if group == "machine":
            return
        with self._path.open("a") as file:
            file.writelines(json.dumps(each) + "\n" for each in records)

    def close(self) -> None:
        """See `Logger.close`."""


def _lines(path: Path) -> Iterable[Record]:
    """The whole lines of a metrics file; a last line that was cut short is passed over."""
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:
            continue
