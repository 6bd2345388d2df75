"""Loggers of a run's metrics: JSON lines, TensorBoard's event files, Weights & Biases (the last two are extras).

A logger receives the step from which a run starts or resumes, then one record per step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from math import isfinite, nan
from pathlib import Path
from typing import Any, Literal, Protocol

from gmtool.artifacts.files import written_aside
from gmtool.artifacts.manifest import Manifest
from gmtool.artifacts.run import METRICS, TENSORBOARD, THROUGHPUT
from gmtool.training.settings import LoggingSettings

Record = dict[str, float]
"""Figures of a step by name; "step", from 1, is one of them."""


Group = Literal["train", "machine", "samples"]
"""Groups of metrics: training, throughput, or the quality of samples."""


class Run(Protocol):
    """A folder that is trained in, and its record."""

    @property
    def path(self) -> Path:
        """The folder."""

    @property
    def manifest(self) -> Manifest:
        """The run's manifest."""


class Logger(Protocol):
    """Receiver of a run's figures."""

    def begin(self, step: int) -> None:
        """Begin after step ``step``: records of later steps, which will be taken again, are dropped."""

    def write(self, records: Sequence[Record], group: Group = "train") -> None:
        """Log the records of a group, which are in the order of their steps."""

    def close(self) -> None:
        """Finish, as the run is over."""


class MetricsFile:
    """Figures of some groups as lines of JSON: a line per step, and one for each score of samples.

    Throughput has a file of its own, ``throughput.jsonl``, so that the ``metrics.jsonl`` of an interrupted run is the
    same as that of an uninterrupted one. The methods raise OSError when the file cannot be written.
    """

    def __init__(self, path: Path, groups: Sequence[Group] = ("train", "samples")) -> None:
        self._path, self._groups = path, groups

    def begin(self, step: int) -> None:
        """See `Logger.begin`."""
        kept = [line for line in _lines(self._path) if line.get("step", 0) <= step]
        with written_aside(self._path) as part:
            part.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def write(self, records: Sequence[Record], group: Group = "train") -> None:
        """See `Logger.write`."""
        if group not in self._groups:
            return
        with self._path.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)

    def close(self) -> None:
        """See `Logger.close`."""


def _lines(path: Path) -> Iterable[Record]:
    """The whole lines of a metrics file; a last line that was cut short is passed over."""
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def step_losses(path: Path) -> list[float]:
    """The finite losses of a metrics file, in the order of the steps."""
    return [line["loss"] for line in _lines(path) if isfinite(line.get("loss", nan))]


def has_record(path: Path, name: str, step: int) -> bool:
    """Whether a metrics file holds the figure ``name`` of a step."""
    return any(name in line and line.get("step") == step for line in _lines(path))


def _named(group: Group, record: Record) -> dict[str, float]:
    """A record's figures under their group, the step left out."""
    return {f"{group}/{name}": value for name, value in record.items() if name != "step"}


class TensorBoard:
    """Event files in ``run/tensorboard/``. `begin` raises ImportError where TensorBoard is not installed."""

    def __init__(self, run: Run) -> None:
        self._folder = str(run.path / TENSORBOARD)
        self._writer: Any = None

    def begin(self, step: int) -> None:
        """See `Logger.begin`."""
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        self._writer = SummaryWriter(self._folder, purge_step=step + 1)

    def write(self, records: Sequence[Record], group: Group = "train") -> None:
        """See `Logger.write`."""
        for record in records:
            for name, value in _named(group, record).items():
                self._writer.add_scalar(name, value, int(record["step"]))
        self._writer.flush()

    def close(self) -> None:
        """See `Logger.close`."""
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """A run of a project at Weights & Biases, or in ``run/wandb/`` with WANDB_MODE=offline.

    A resumed run continues its own record, in which steps already logged stay as they were. `begin` raises ImportError
    where wandb is not installed.
    """

    def __init__(self, run: Run, project: str) -> None:
        self._run, self._project = run, project
        self._session: Any = None

    def begin(self, _step: int) -> None:
        """See `Logger.begin`; the service passes over the figures of steps before its last one."""
        import wandb

        self._session = self._session or wandb.init(
            project=self._project,
            dir=str(self._run.path),
            id=self._run.manifest.fingerprint[:16],
            name=self._run.path.absolute().name,
            resume="allow",
            config=dict(self._run.manifest.config),
        )

    def write(self, records: Sequence[Record], group: Group = "train") -> None:
        """See `Logger.write`."""
        for record in records:
            self._session.log(_named(group, record), step=int(record["step"]))

    def close(self) -> None:
        """See `Logger.close`."""
        if self._session is not None:
            self._session.finish()


def loggers_for(settings: LoggingSettings, run: Run) -> tuple[Logger, ...]:
    """The loggers of a run that the settings ask for."""
    loggers: list[Logger] = [MetricsFile(run.path / METRICS), MetricsFile(run.path / THROUGHPUT, ["machine"])]
    if settings.tensorboard or (settings.tensorboard is None and find_spec("tensorboard") is not None):
        loggers.append(TensorBoard(run))
    if settings.wandb is not None:
        loggers.append(WeightsAndBiases(run, settings.wandb))
    return tuple(loggers)
