"""Checkpoints: written aside and renamed, so that one that is there is whole; never unpickled.

What a disk that filled up or lost its power cut short all the same is found by the files' sizes, which the last file
written records beside a checksum of itself; tensors have checksums of their own.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn

from gmtool.artifacts.files import flush_to_disk, part_of
from gmtool.artifacts.manifest import CHECKSUM, fingerprint
from gmtool.artifacts.safetensors_io import read_tensors, write_tensors
from gmtool.distributed import ALONE, World, sharded_like
from gmtool.errors import UserError
from gmtool.streams import key_seed
from gmtool.training.optimizer import Optimizer
from gmtool.training.settings import AverageSettings, LoopSettings, OptimizerSettings

MODEL, EMA, OPTIMIZER, STATE = "model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"

NOT_WHOLE = "was cut short or changed since it was written"
"""Why a checkpoint is passed over."""
REPAIR = "remove it to use an older checkpoint, or train (or import) again"
"""The remedy for a damaged checkpoint, or a file of it."""


@dataclass(frozen=True)
class Position:
    """The position of a run.

    step: optimizer steps taken, skipped ones included. order: the number of the order of the data, which changes when a
    run rolls back. skipped: steps skipped in all. streak: steps skipped in a row up to now.
    """

    step: int = 0
    order: int = 0
    skipped: int = 0
    streak: int = 0

    def after(self, skipped: bool) -> Position:
        """The position after one more step. skipped: whether it was skipped."""
        return replace(
            self, step=self.step + 1, skipped=self.skipped + skipped, streak=self.streak + 1 if skipped else 0
        )

    def seed(self, seed: int) -> int:
        """The seed of this order of the data, for a run's seed: that seed itself until the run rolls back."""
        return key_seed(seed, "order", self.order) if self.order else seed


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: its folder, and where the run was.

    passed_over: newer ones that are not whole, where this is the newest that is.
    """

    path: Path
    position: Position
    passed_over: tuple[Path, ...] = field(default=(), compare=False)

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.position.step

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user on the choice of this checkpoint."""
        return tuple(f"{path} {NOT_WHOLE}: taking step {self.step:,} instead" for path in self.passed_over)

    def weights(self) -> tuple[str, ...]:
        """The files that hold weights: of the network, and of its averages."""
        return MODEL, *sorted(file.name for file in self.path.glob("ema*.safetensors"))


def list_checkpoints(folder: Path) -> tuple[Checkpoint, ...]:
    """All whole checkpoints of a run's ``checkpoints`` folder, oldest first."""
    checkpoints = [checkpoint for path in _folders(folder) if (checkpoint := _open(path)) is not None]
    return tuple(sorted(checkpoints, key=lambda checkpoint: checkpoint.step))


def cut_short(folder: Path) -> tuple[Path, ...]:
    """Incomplete checkpoints in a run's ``checkpoints`` folder, oldest first."""
    return tuple(sorted((path for path in _folders(folder) if _open(path) is None), key=_step_of))


def _folders(folder: Path) -> list[Path]:
    candidates = folder.glob("step-*") if folder.is_dir() else ()
    return [path for path in candidates if re.fullmatch(r"step-\d+", path.name)]


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _open(path: Path) -> Checkpoint | None:
    """The checkpoint in a folder; None unless all its files are there with the sizes that they had."""
    try:
        state = json.loads((path / STATE).read_bytes())
        known = state.pop(CHECKSUM, None)  # earlier versions wrote none
        if known is not None and known != _checksum(state):
            return None
        sizes = state.pop("files")
        if any((path / name).stat().st_size != size for name, size in sizes.items()):
            return None
        return Checkpoint(path, Position(**state))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _checksum(state: Mapping[str, object]) -> str:
    return fingerprint([json.dumps(state)])


def find_checkpoint(folder: Path, step: int | None) -> Checkpoint:
    """The checkpoint of this step, or the newest that is whole. Raises UserError when there is none."""
    whole, damaged = list_checkpoints(folder), cut_short(folder)
    if not whole:
        if damaged:
            raise UserError(f"{damaged[-1]} {NOT_WHOLE}, and there is no whole checkpoint: train (or import) again")
        raise UserError(f"{folder} holds no checkpoint yet: let `gmtool train` reach --save-every steps")
    if step is None:
        return replace(whole[-1], passed_over=tuple(path for path in damaged if _step_of(path) > whole[-1].step))
    for checkpoint in whole:
        if checkpoint.step == step:
            return checkpoint
    for path in damaged:
        if _step_of(path) == step:
            raise UserError(f"--checkpoint {step}: {path} {NOT_WHOLE}")
    raise UserError(f"--checkpoint {step}: {folder} has {', '.join(str(checkpoint.step) for checkpoint in whole)}")


def save_checkpoint(folder: Path, position: Position, files: Mapping[str, Mapping[str, Tensor]]) -> Checkpoint:
    """Write the checkpoint of a position to the folder of checkpoints: files of named tensors by file name.

    It appears whole or not at all, and replaces one of the same step. Raises OSError when the disk is full or fails.
    """
    target = folder / f"step-{position.step:08d}"
    part = part_of(target)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for name, tensors in files.items():
            write_tensors(part / name, tensors)
        sizes = {name: (part / name).stat().st_size for name in files}
        state = {**asdict(position), "files": sizes}
        (part / STATE).write_text(json.dumps({**state, CHECKSUM: _checksum(state)}))
        flush_to_disk(part / STATE)
        flush_to_disk(part)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    flush_to_disk(folder)
    return Checkpoint(target, position)


def keep_checkpoint(
    folder: Path, position: Position, files: Mapping[str, Mapping[str, Tensor]], settings: LoopSettings
) -> None:
    """`save_checkpoint`, then `remove_old` as the settings say."""
    save_checkpoint(folder, position, files)
    remove_old(folder, settings.keep, settings.keep_every)


def remove_old(folder: Path, keep: int, keep_every: int = 0) -> None:
    """Remove all but the newest ``keep`` >= 1 checkpoints and those at multiples of ``keep_every`` steps (0: none).

    The newest that was not saved amid skipped steps stays too: it is the one to roll back to. The remains of one whose
    writing or removal was killed are removed.
    """
    for part in folder.glob(part_of(Path("step-*")).name):
        shutil.rmtree(part, ignore_errors=True)
    checkpoints = list_checkpoints(folder)
    good = [checkpoint for checkpoint in checkpoints if not checkpoint.position.streak]
    for old in checkpoints[:-keep]:
        if old not in good[-1:] and (not keep_every or old.step % keep_every):
            # under another name first: what a kill leaves of it is then no checkpoint that is not whole
            part = part_of(old.path)
            old.path.rename(part)
            shutil.rmtree(part, ignore_errors=True)


def checkpoint_bytes(parameters: int, averages: AverageSettings, optimizer: OptimizerSettings) -> int:
    """About the bytes of a checkpoint: weights and averages in float32, and the optimizer's moments.

    parameters: number of the network's weights.
    """
    return (4 * (1 + len(averages.names)) + optimizer.moment_bytes) * parameters


def load_weights(network: nn.Module, file: Path, world: World = ALONE) -> None:
    """Load a network's weights from a file in place, strictly. All processes of ``world`` call this together.

    Raises UserError when the file is missing or damaged for one of them, or holds the weights of another network.
    """
    tensors = _read_together(file, world)
    try:
        here = network.state_dict()
        network.load_state_dict({name: sharded_like(tensor, here.get(name)) for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise UserError(f"{file} holds the weights of another network than config.json says") from error


def load_optimizer(optimizer: Optimizer, file: Path, world: World = ALONE) -> None:
    """Load an optimizer's state from a file in place. All processes of ``world`` call this together.

    Raises UserError when the file is missing or damaged for one of them, or holds the state of another network's
    optimizer.
    """
    tensors = _read_together(file, world)
    try:
        optimizer.load(tensors)
    except KeyError as error:
        raise UserError(f"{file} holds the state of another network's optimizer than config.json says") from error


def _read_together(file: Path, world: World) -> dict[str, Tensor]:
    """The tensors (...) of a file by name, where all processes can read it; where one cannot, all raise its UserError.

    None of them hence begins to take shards that another will not share out.
    """
    tensors: dict[str, Tensor] = {}
    error = None
    try:
        tensors = read_tensors(file, repair=REPAIR)
    except UserError as unreadable:
        error = unreadable
    failure = world.failure(None if error is None else str(error))
    if failure is not None:
        raise UserError(failure) from error
    return tensors
