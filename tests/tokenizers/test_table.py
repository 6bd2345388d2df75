"""The table of tokenizers: a new one is a file and a row, and nothing outside asks for a name."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from torch import Tensor

import gmtool
from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.errors import GmtoolError, UserError
from gmtool.progress import Progress
from gmtool.stages.encode.config import EncodeConfig
from gmtool.stages.encode.run import encode_images
from gmtool.tokenizers.base import Encoded, ImageSample, LatentSizes, Settled, TokenizerFamily
from gmtool.tokenizers.build import build_tokenizer, decodes_exactly, latent_sizes, missing_decoder, takes_grey
from gmtool.tokenizers.settings import TokenizerSettings
from gmtool.tokenizers.table import TOKENIZERS, TokenizerRow, family_of

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Mean:
    """The mean colour of an image, as one position of three channels."""

    side: int

    image_size = property(lambda self: self.side)
    latent_shape = (3, 1, 1)
    descriptor_size = 3

    def spec(self) -> TokenizerSpec:
        return TokenizerSpec("mean", {"image_size": self.side})

    def encode(self, images: Tensor) -> Encoded:
        return Encoded(images.float().mean((2, 3), keepdim=True) / 255, self.describe(images))

    def describe(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3))

    def decode(self, latents: Tensor, truncate: bool = False) -> Tensor:
        return (latents * 255).round().to(torch.uint8).expand(-1, -1, self.side, self.side)


class MeanFamily(TokenizerFamily):
    def settle(self, settings: TokenizerSettings, model: str | None, images: ImageSample) -> Settled:
        return Settled(TokenizerSpec("mean", {"image_size": settings.image_size or min(images.first_size())}))

    def sizes(self, spec: TokenizerSpec, images: int) -> LatentSizes:
        return LatentSizes((3, 1, 1), 3)

    def open(self, spec: TokenizerSpec, device: torch.device, dtype: torch.dtype, decoder: str | None) -> Mean:
        return Mean(spec.settings["image_size"])


FAMILY = MeanFamily()


def test_a_new_tokenizer_is_a_family_and_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOKENIZERS, "mean", TokenizerRow(f"{__name__}:FAMILY", "the mean colour"))  # type: ignore[arg-type]
    for index, colour in enumerate([(10, 20, 30), (40, 50, 60)]):
        Image.new("RGB", (9, 12), colour).save(tmp_path / f"{index}.png")
    output = tmp_path / "latents.h5"
    encode_images(tmp_path, output, EncodeConfig(TokenizerSettings("mean"), workers=0, device="cpu"), Progress())
    with open_latents(output) as latents:
        assert latents.tokenizer.name == "mean"
        tokenizer = build_tokenizer(latents.tokenizer, CPU)
        images = tokenizer.decode(torch.from_numpy(latents.patches(slice(None))).float())
        np.testing.assert_array_equal(images[1, :, 4, 4], [40, 50, 60])
        np.testing.assert_array_equal(latents.descriptors(slice(None)), [[10, 20, 30], [40, 50, 60]])
        assert images.shape[-1] == 9
        assert not decodes_exactly(latents.tokenizer) and not takes_grey(latents.tokenizer)
        assert missing_decoder(latents.tokenizer, None) is None
    with pytest.raises(UserError, match="--patch-size is a setting of --tokenizer pixels"):
        config = EncodeConfig(TokenizerSettings("mean", patch_size=2), workers=0, device="cpu")
        encode_images(tmp_path, output, config, Progress())


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_row_leads_to_a_family(name: str) -> None:
    assert isinstance(family_of(name), TokenizerFamily)


def test_an_unknown_name_is_a_newer_version_s() -> None:
    with pytest.raises(UserError, match="unknown to this gmtool: upgrade"):
        build_tokenizer(TokenizerSpec("from the future", {}), CPU)


def test_a_model_that_is_gone_is_named_and_no_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes from a record: what reads one need not have a --tokenizer."""

    def download(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("not there")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for model, words in {
        str(tmp_path / "gone"): f"the tokenizer {tmp_path / 'gone'} is no longer there: put its folder back",
        "owner/name": "(no network?): put it back into the Hugging Face cache, or set HF_HOME to one that holds it",
    }.items():
        for name in (name for name in TOKENIZERS if family_of(name).weights):
            spec = TokenizerSpec(name, {"model": model, "weights": "0", "image_size": 32})
            for read in (lambda spec: build_tokenizer(spec, CPU), lambda spec: latent_sizes(spec, 1)):
                with pytest.raises(GmtoolError) as caught:
                    read(spec)
                assert words in str(caught.value) and "--" not in str(caught.value)


def test_nothing_outside_asks_for_a_tokenizer_by_name() -> None:
    """An extension point that others compare by name is none."""
    names = "|".join(map(re.escape, TOKENIZERS))
    compared = re.compile(rf"""(==|!=|\bin\b)\s*\(?["']({names})["']|["']({names})["']\s*(==|!=)""")
    package = Path(gmtool.__file__).parent
    for file in package.rglob("*.py"):
        if file.parent != package / "tokenizers":
            assert not compared.search(file.read_text()), file


class Empty(MeanFamily):
    def sizes(self, spec: TokenizerSpec, images: int) -> LatentSizes:
        return LatentSizes((3, 1, 1), 0)


def test_descriptors_of_no_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a model whose configuration says that its hidden size is 0 would give; HDF5 dies of them."""
    row: Any = TokenizerRow(f"{__name__}:EMPTY", "nothing")
    monkeypatch.setitem(TOKENIZERS, "mean", row)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="latents of 3 x 1 x 1 and descriptors of 0 numbers"):
        latent_sizes(TokenizerSpec("mean", {"image_size": 9}), 1)


EMPTY = Empty()
