"""Where else a run's figures go: TensorBoard's event files, and Weights & Biases. Both are extras."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from gmtool.artifacts.run import TENSORBOARD, RunFolder
from gmtool.errors import UserError
from gmtool.training.metrics import Group, Record


def _named(group: Group, record: Record) -> dict[str, float]:
    """A record's figures under their group, the step left out."""
    return {f"{group}/{name}": value for name, value in record.items() if name != "step"}


class TensorBoard:
    """Event files in ``run/tensorboard/``."""

    def __init__(self, run: RunFolder) -> None:
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

    A run that goes on continues its own record there, where steps that were logged already stay as they were.
    """

    def __init__(self, run: RunFolder, project: str) -> None:
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


def tensorboard_wanted(wanted: bool | None) -> bool:
    """Whether to write TensorBoard's events: as asked, else when it is installed."""
    return find_spec("tensorboard") is not None if wanted is None else wanted


def check_installed(tensorboard: bool | None, wandb: str | None) -> None:
    """Raise UserError when a logger is asked for that is not installed."""
    if tensorboard and find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs TensorBoard: pip install 'gmtool[log]'")
    if wandb is not None and find_spec("wandb") is None:
        raise UserError("--wandb needs Weights & Biases: pip install 'gmtool[wandb]'")
