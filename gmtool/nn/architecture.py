"""What defines a network, the frozen record that a run stores, and the labels of a batch."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from gmtool.errors import UserError
from gmtool.nn.settings import NetworkSettings
from gmtool.settings import flag

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on


@dataclass(frozen=True)
class HeadShape:
    """What a head predicts at a position: a mixture of ``components`` over ``channels`` numbers, or, if ``components``
    is 0, ``velocities`` of ``channels`` numbers.
    """

    channels: int
    components: int = 0
    velocities: int = 1

    @property
    def vectors(self) -> int:
        """Vectors of ``channels`` numbers: means, or velocities."""
        return self.components or self.velocities

    @property
    def numbers(self) -> int:
        """The count of numbers at a position: those of the vectors one after another, then one logit per component."""
        return self.vectors * self.channels + self.components


@dataclass(frozen=True)
class Architecture:
    """Everything that defines a network's weights and what it computes; a run stores it to load its weights.

    Each kind of network has a subclass beside it, with its own fields; these are what the rest of gmtool relies on.
    Raises ValueError for values of which no network can be built.

    kind: its row in `gmtool.nn.NETWORKS`.
    shape: (C, H, W) of the latents.
    classes, modes: number of labels of each sort that it is conditioned on, 0 for none.
    context: channels beside x_t that the network sees at every position, 0 for none; see `Conditions`.
    components: K of the mixture over the velocity, 0 for a velocity alone.
    velocities: number of velocities that it predicts without components; a student of policy dx predicts several.
    constant_std: standard deviation of the components over the velocity, None where it is learned.
    spectral: number of leading axes that are transported to learn the spectrum of the noise, 0 for none.
    """

    kind: ClassVar[str]

    shape: tuple[int, int, int]
    _: KW_ONLY
    classes: int = 0
    modes: int = 0
    context: int = 0
    components: int = 0
    constant_std: float | None = None
    spectral: int = 0
    velocities: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError for numbers that make no network."""
        expect(min(self.shape) >= 1, f"latents of shape {self.shape}")
        for name in ("classes", "modes", "context", "components", "spectral"):
            expect(getattr(self, name) >= 0, f"{name} = {getattr(self, name)}")
        expect(self.velocities >= 1 and not (self.components and self.velocities > 1), f"{self.velocities} velocities")
        expect(self.spectral <= self.channels, f"spectral = {self.spectral} for {self.channels} channels")
        std = self.constant_std
        expect(std is None or (math.isfinite(std) and std > 0), f"constant_std = {std}")

    @property
    def channels(self) -> int:
        """C of the latents."""
        return self.shape[0]

    @property
    def head(self) -> HeadShape:
        """What the head predicts at a position."""
        return HeadShape(self.channels, self.components, self.velocities)

    @property
    def inputs(self) -> int:
        """Channels of the network's input at each position: those of x_t and of the context."""
        return self.channels + self.context

    def configured(self, settings: NetworkSettings) -> Self:
        """The architecture, changed as --patch-size, --blocks and --qk-norm ask.

        Raises UserError, naming the flag, for what a network of this kind cannot do: here, any of them.
        """
        for name in ("patch_size", "blocks", "qk_norm"):
            if getattr(settings, name) != getattr(NetworkSettings, name):
                raise UserError(f"{flag(name)} has no effect on a network of the kind {self.kind}: remove the flag")
        return self


def expect(valid: bool, what: str) -> None:
    """Raise ValueError unless a condition on an architecture holds."""
    if not valid:
        raise ValueError(f"no network has {what}")


@dataclass(frozen=True)
class TransformerArchitecture(Architecture):
    """A transformer whose tokens are patches of ``patch`` x ``patch`` positions; ``patch`` divides H and W.

    depth, width, heads: number of blocks, channels of a token, number of attention heads.
    rms_norm (else LayerNorm without parameters), swiglu (else GELU), rope (rotary embedding of queries and keys, beside
    the position table), qk_norm: what the blocks are made of.
    columns_first: whether the first half of the position table's channels encodes the column, not the row.
    """

    depth: int
    width: int
    heads: int
    _: KW_ONLY
    patch: int = 1
    rms_norm: bool = False
    swiglu: bool = False
    rope: bool = False
    qk_norm: bool = False
    columns_first: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for numbers that make no network."""
        super().__post_init__()
        expect(self.patch >= 1, f"patches of {self.patch} positions")
        expect(not any(side % self.patch for side in self.shape[1:]), f"patches of {self.patch} on {self.shape}")
        self.expect_blocks(self.depth, self.width, self.heads)

    def expect_blocks(self, depth: int, width: int, heads: int) -> None:
        """Raise ValueError unless a network can have ``depth`` blocks of ``width`` channels and ``heads`` heads."""
        expect(depth >= 0, f"{depth} blocks")
        expect(heads >= 1 and width >= 1 and width % heads == 0, f"{heads} heads of {width} numbers")
        # sin and cos, by row and by column
        expect(
            width % 4 == 0 and not (self.rope and width // heads % 4), f"positions in {heads} heads of {width} numbers"
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.shape[1] // self.patch, self.shape[2] // self.patch

    def configured(self, settings: NetworkSettings) -> Self:
        """See `Architecture.configured`."""
        side, (_, height, width) = settings.patch_size, self.shape
        if height % side or width % side:
            raise UserError(
                f"--patch-size {side} does not divide the latents' {height} x {width} positions: use another"
            )
        changed = replace(self, patch=side, qk_norm=settings.qk_norm)
        return changed if settings.blocks == "auto" else changed.with_blocks(modern=settings.blocks == "modern")

    def with_blocks(self, modern: bool) -> Self:
        """The architecture with RMSNorm, SwiGLU and RoPE (modern), or with LayerNorm and GELU."""
        return replace(self, rms_norm=modern, swiglu=modern, rope=modern)


@dataclass(frozen=True)
class Conditions:
    """The conditions of a batch; None for those that the network was not built for.

    classes, modes: labels (B,) int64; the null label is their count. context (B, context, H, W): further channels of
    the input, such as the mean of the mode; zeros stand for none.
    """

    classes: Tensor | None = None
    modes: Tensor | None = None
    context: Tensor | None = None
