"""The tokenizers, a row each. A new one is a file with a `TokenizerFamily`, and a row here.

A row names its family by an import string, so that ``--help`` reads this table without importing a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from gmtool.errors import UserError

if TYPE_CHECKING:  # --help reads this module, and has no use for numpy
    from gmtool.tokenizers.base import TokenizerFamily


@dataclass(frozen=True)
class TokenizerRow:
    """where: ``module:object``, the family. help: what it is, in a few words. settings: those that not all read."""

    where: str
    help: str
    settings: tuple[str, ...] = ()

    def family(self) -> TokenizerFamily:
        """The family, imported."""
        module, _, name = self.where.partition(":")
        family: TokenizerFamily = getattr(import_module(module), name)
        return family


_ENCODERS = "gmtool.tokenizers.encoder"
TOKENIZERS: Mapping[str, TokenizerRow] = {
    "dinov2": TokenizerRow(f"{_ENCODERS}:DINOV2", "facebook/dinov2-with-registers-base", ("layers",)),
    "dinov3": TokenizerRow(f"{_ENCODERS}:DINOV3", "facebook/dinov3-vitb16-pretrain-lvd1689m", ("layers",)),
    "siglip2": TokenizerRow(f"{_ENCODERS}:SIGLIP2", "google/siglip2-base-patch16-256", ("layers",)),
    "mae": TokenizerRow(f"{_ENCODERS}:MAE", "facebook/vit-mae-base", ("layers",)),
    "sd-vae": TokenizerRow("gmtool.tokenizers.sd_vae:FAMILY", "stabilityai/sd-vae-ft-ema; extra: sd-vae"),
    "pixels": TokenizerRow(
        "gmtool.tokenizers.pixels:FAMILY", "patches of pixels, needs no weights", ("patch_size", "channels")
    ),
}
"""The tokenizers by name, as ``--tokenizer`` and the record of a tokenizer say it."""


def family_of(name: str) -> TokenizerFamily:
    """The family of a recorded name. Raises UserError for one that this version does not have."""
    if name not in TOKENIZERS:
        raise UserError(f"the tokenizer {name!r} of this file is unknown to this gmtool: upgrade gmtool")
    return TOKENIZERS[name].family()
