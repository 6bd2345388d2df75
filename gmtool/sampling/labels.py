"""The labels and modes of the samples that are drawn."""

from __future__ import annotations

import numpy as np

from gmtool.artifacts.run import RunFolder
from gmtool.errors import UserError
from gmtool.sampling.settings import SelectionSettings


def labels_of(selection: SelectionSettings, run: RunFolder) -> np.ndarray:
    """The label of every sample, (num,) int64: the chosen classes in turn, equally often; -1 without classes.

    Raises UserError for classes of a run that was trained without, and for a class that it does not know.
    """
    if run.method.condition != "class":
        if selection.classes is not None:
            raise UserError(f"--classes: {run.path} was trained without classes (--condition {run.method.condition})")
        return np.full(selection.num, -1, np.int64)
    chosen = list(run.sampled_classes)
    if not chosen:
        raise UserError(f"{run.path} is told classes, and knows none by name: there is nothing to draw")
    if selection.classes is not None:
        chosen = [_class(word.strip(), run) for word in selection.classes.split(",")]
    return np.array(chosen, np.int64)[np.arange(selection.num) % len(chosen)]


def modes_of(selection: SelectionSettings, run: RunFolder) -> np.ndarray | None:
    """The mode of every sample, (num,) int64, the chosen ones in turn; None where they are drawn.

    Raises UserError for modes of a run whose samples do not depend on a mode, and for one that its mixture does not
    have.
    """
    if selection.modes is None:
        return None
    weights = run.statistics().mode_weights
    if weights is None or not (run.method.sees_modes or run.method.method.coupling.own_mode):
        raise UserError(f"--modes: {run.path} draws without modes; train with --coupling mode or --condition mode")
    number = weights.shape[1]
    words = [word.strip() for word in selection.modes.split(",")]
    for word in words:
        if not (word.isdecimal() and int(word) < number):
            raise UserError(f"--modes: {word!r} is not a number below {number}, the modes of {run.path}")
    return np.array([int(word) for word in words], np.int64)[np.arange(selection.num) % len(words)]


def _class(word: str, run: RunFolder) -> int:
    if word in run.classes:
        return run.classes.index(word)
    if word.isdecimal() and int(word) < len(run.classes):
        return int(word)
    raise UserError(f"--classes: {word!r} is neither a class name nor a number below {len(run.classes)}")
