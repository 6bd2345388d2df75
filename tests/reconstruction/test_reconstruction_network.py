"""The decoder that is trained: RAE's values, a released checkpoint to begin with, and what is written back."""

import random
from pathlib import Path

import pytest
import torch
from golden import DATA, TOLERANCE, arrays
from torch import Tensor

from gmtool.errors import UserError
from gmtool.foreign import rae_decoder
from gmtool.reconstruction.network import DecoderNetwork, decoder_from, save_decoder
from gmtool.tokenizers.encoder import DINOV2
from gmtool.tokenizers.rae import load_decoder
from gmtool.tokenizers.vit import IMAGENET

pytest.importorskip("diffusers")

CPU = torch.device("cpu")


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DecoderNetwork:
    """A decoder trained further from RAE's own layout, its position embedding moved from where it began."""
    golden = arrays("rae_decoder")
    weights = {key.removeprefix("weight:"): tensor for key, tensor in golden.items() if key.startswith("weight:")}
    torch.save(weights | {"decoder_pos_embed": golden["decoder_pos_embed_perturbed"]}, tmp_path / "model.pt")
    monkeypatch.setattr(rae_decoder, "HEADS", {48: 4})
    return decoder_from(str(tmp_path / "model.pt"), DINOV2.spec(str(DATA / "rae_encoder"), 16))


def expected(network: DecoderNetwork) -> Tensor:
    mean, std = (torch.tensor(colour).view(3, 1, 1) for colour in IMAGENET)
    return network.decoder.unpatchify(arrays("rae_decoder")["logits_pos_perturbed"]) * std + mean


def latents() -> Tensor:
    return arrays("rae_decoder")["latents"].transpose(1, 2).unflatten(2, (4, 4))


def test_a_released_decoder_is_the_one_to_begin_with(released: DecoderNetwork) -> None:
    torch.testing.assert_close(released(latents()).detach(), expected(released), **TOLERANCE)
    assert all(parameter.requires_grad for parameter in released.parameters())


def test_what_is_written_is_read_again(released: DecoderNetwork, tmp_path: Path) -> None:
    spec = DINOV2.spec(str(DATA / "rae_encoder"), 16)
    (tmp_path / "out").mkdir()
    save_decoder(released, tmp_path / "out", spec)
    again = decoder_from(str(tmp_path / "out"), spec)
    for one, other in zip(released.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    decoder = load_decoder(str(tmp_path / "out"), CPU, spec)
    torch.testing.assert_close(decoder.decode_float(latents()), expected(released), **TOLERANCE)


@pytest.mark.slow
def test_a_damaged_folder_is_refused_or_the_same(released: DecoderNetwork, tmp_path: Path) -> None:
    """A flipped bit anywhere in it: never other numbers."""
    spec = DINOV2.spec(str(DATA / "rae_encoder"), 16)
    folder = tmp_path / "out"
    folder.mkdir()
    save_decoder(released, folder, spec)
    given = latents()[:1]
    right = load_decoder(str(folder), CPU, spec).decode_float(given)
    draw, refused = random.Random(0), 0
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        for _ in range(25):
            place = draw.randrange(len(content))
            changed = bytes([content[place] ^ 1 << draw.randrange(8)])
            file.write_bytes(content[:place] + changed + content[place + 1 :])
            try:
                decoded = load_decoder(str(folder), CPU, spec).decode_float(given)
            except UserError as error:
                assert "\n" not in str(error) and str(folder) in str(error)
                refused += 1
            else:
                assert torch.equal(decoded, right), f"{file.name} byte {place}"
        file.write_bytes(content)
    assert refused > 60
