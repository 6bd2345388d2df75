"""Means and deviations of a fitted mixture's modes in normalised latents: on the GPU, in memory or on disk, by size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gmtool.artifacts.gmm import GmmFile
from gmtool.artifacts.method_record import MethodRecord
from gmtool.artifacts.run import LatentStatistics
from gmtool.data.memory import SHARE, fits_in_memory
from gmtool.flow.method import Method
from gmtool.flow.source import ModeStatistics
from gmtool.runtime import to_device

FLOOR = 0.05
"""Least s_k of whitened coordinates, in standard deviations of all data: no entry is magnified more than twentyfold.

It is a guard, seldom reached: the shrinkage of fit-gmm, 4 images by default, keeps s_k above sqrt(4 / (n + 4)) in a
mode of n images, which is 0.23 in the digits' 32 modes and 0.16 in ImageNet's 8192. Without shrinkage 13 % of the
digits' entries lie below 0.05, the least at 0.004; a union trained there for 200 steps is no better or worse with a
floor of 0.2 than with none (Fréchet distance 1.21 and 1.19 at 4 evaluations, 2.61 and 2.68 at one): so the floor is
small enough to change no fit, and there for entries that are all but constant in a mode.
"""


Place = Literal["device", "memory", "disk"]


def place_for(size: int, device: torch.device) -> Place:
    """Where ``size`` bytes of modes are kept: on a GPU if they take at most a quarter of its free memory, else in the
    machine's memory if they take at most a quarter of that, else on disk.
    """
    if not fits_in_memory(size):
        return "disk"
    if device.type == "cuda" and size > SHARE * torch.cuda.mem_get_info(device)[0]:
        return "memory"
    return "device"


def mode_bytes(modes: int, shape: tuple[int, int, int]) -> int:
    """Bytes of memory of a number of modes (C, H, W), mean and deviation; 0 where they stay on disk."""
    size = _table_bytes(modes, shape)
    return size if fits_in_memory(size) else 0


def _table_bytes(modes: int, shape: tuple[int, int, int]) -> int:
    return 8 * modes * int(np.prod(shape))


class ModeTable:
    """Means and standard deviations of modes, normalised as the latents are, whose statistics are m and s:

        mu_k = (mean_k - m) / s,    s_k = std_k / s,    entry by entry of (C, H, W).

    whitened: whether data will be divided by s_k, which is then at least `FLOOR`; a source that is only drawn from is
    taken as it was fitted. place: where all modes are kept; default: see `place_for`. On "disk" each batch's are read
    from the file. Raises UserError when the file is damaged.
    """

    def __init__(
        self,
        gmm: GmmFile,
        statistics: LatentStatistics,
        device: torch.device,
        whitened: bool,
        place: Place | None = None,
    ) -> None:
        self._gmm, self._device, self._floor = gmm, device, FLOOR if whitened else 0.0
        self._statistics = statistics.to(torch.device("cpu"))
        self._all: ModeStatistics | None = None
        where = place or place_for(_table_bytes(len(gmm), gmm.shape), device)
        if where != "disk":
            self._all = self._read(np.arange(len(gmm)))
        if where == "device" and self._all is not None:
            self._all = ModeStatistics(self._all.mean.to(device), self._all.std.to(device))

    def at(self, modes: Tensor) -> ModeStatistics:
        """The statistics (B, C, H, W) float32, on the device, of modes (B,) int64.

        Raises UserError when they are read from the file and it is damaged.
        """
        if self._all is None:
            statistics = self._read(modes.cpu().numpy())
            return ModeStatistics(to_device(statistics.mean, self._device), to_device(statistics.std, self._device))
        return ModeStatistics(self._pick(self._all.mean, modes), self._pick(self._all.std, modes))

    def _pick(self, values: Tensor, modes: Tensor) -> Tensor:
        """Rows of values (K, ...), which lie on the device or beside it."""
        if values.is_cuda or self._device.type != "cuda":
            return values[to_device(modes, values.device)]
        picked = torch.empty(len(modes), *values.shape[1:], pin_memory=True)
        torch.index_select(values, 0, modes.cpu(), out=picked)
        return to_device(picked, self._device)

    def _read(self, modes: np.ndarray) -> ModeStatistics:
        mean = torch.from_numpy(self._gmm.patch_mean(modes))
        std = torch.from_numpy(self._gmm.patch_std(modes))
        return ModeStatistics(self._statistics.normalise(mean), (std / self._statistics.std).clamp(min=self._floor))


def mode_table_of(
    record: MethodRecord, gmm: GmmFile | None, statistics: LatentStatistics, device: torch.device
) -> ModeTable | None:
    """The statistics of a run's modes, normalised as its latents; None where neither method nor network uses them.

    Raises UserError when the mixture's file is damaged.
    """
    if gmm is None or not record.uses_mode_statistics:
        return None
    return ModeTable(gmm, statistics, device, whitened=record.method.coordinates.by_mode)


@dataclass(frozen=True)
class ModeInputs:
    """What a method and a network take of samples' modes, in training and in sampling alike.

    table: statistics of the modes, None where they are not used. mode_mean: whether the network is shown the mean of a
    sample's own mode.
    """

    method: Method
    table: ModeTable | None
    mode_mean: bool

    @property
    def apart(self) -> bool:
        """Whether noise comes from modes that are drawn apart from the samples' own."""
        return self.table is not None and self.method.uses_modes and not self.method.coupling.own_mode

    def of(self, own: Tensor | None, free: Tensor | None = None) -> tuple[ModeStatistics | None, Tensor | None]:
        """The statistics of the modes that samples' noise comes from, and the means (B, C, H, W) of their own modes.

        own, free (B,) int64: the samples' modes, and those that are drawn apart; None where they are not known. What is
        not asked for, or not known, is None.
        """
        if self.table is None:
            return None, None
        own_mode = self.method.coupling.own_mode
        chosen = own if own_mode else free
        source = self.table.at(chosen) if self.method.uses_modes and chosen is not None else None
        if not self.mode_mean or own is None:
            return source, None
        known = source if own_mode else None
        return source, (known or self.table.at(own)).mean
