"""Decoding DINOv2 latents with diffusers' AutoencoderRAE, against values of RAE's public implementation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gmtool.artifacts.manifest import file_fingerprint
from gmtool.errors import UserError
from gmtool.foreign import rae_decoder
from gmtool.tokenizers.build import build_tokenizer
from gmtool.tokenizers.encoder import DINOV2, SIGLIP2
from gmtool.tokenizers.rae import Decoder, decoder_inputs, load_decoder
from gmtool.tokenizers.vit import IMAGENET

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

DATA = Path(__file__).parents[1] / "data"
CPU = torch.device("cpu")
ENCODER = DINOV2.spec(str(DATA / "rae_encoder"), 64)
CLOSE = {"atol": 2e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(DATA / "rae_decoder.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def save(golden: dict[str, Tensor], folder: Path, positions: str) -> Path:
    """The golden decoder as a saved AutoencoderRAE, with the position embedding of that name in its file."""
    from safetensors.torch import load_file, save_file

    autoencoder = diffusers.AutoencoderRAE(
        encoder_hidden_size=32,
        encoder_num_hidden_layers=0,
        decoder_hidden_size=48,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=96,
        patch_size=4,
        encoder_input_size=56,
        encoder_norm_mean=[0.0, 0.0, 0.0],
        encoder_norm_std=[1.0, 1.0, 1.0],
    )
    names = {"attention.attention.query": "attention.to_q", "attention.attention.key": "attention.to_k"}
    names |= {"attention.attention.value": "attention.to_v", "attention.output.dense": "attention.to_out.0"}
    weights = {}
    for name, value in golden.items():
        if name.startswith("weight:"):
            key = name.removeprefix("weight:")
            for old, new in names.items():
                key = key.replace(old, new)
            weights[key] = value
    report = autoencoder.decoder.load_state_dict(weights, strict=False)
    assert report.missing_keys == []
    assert report.unexpected_keys == ["decoder_pos_embed"]
    autoencoder.save_pretrained(folder)
    (file,) = folder.glob("*.safetensors")
    save_file(load_file(file) | {"decoder.decoder_pos_embed": golden[positions]}, file)
    return folder


@pytest.fixture(scope="module")
def decoder(golden: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load_decoder(str(save(golden, tmp_path_factory.mktemp("rae"), "weight:decoder_pos_embed")), CPU, ENCODER)


def grid(tokens: Tensor) -> Tensor:
    side = int(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def test_images(decoder: Decoder, golden: dict[str, Tensor]) -> None:
    torch.testing.assert_close(decoder.decode_float(grid(golden["latents"])), golden["image"], **CLOSE)


def test_another_grid_is_resized(decoder: Decoder, golden: dict[str, Tensor]) -> None:
    expected = decoder.network.decoder.unpatchify(golden["logits_other"])
    torch.testing.assert_close(decoder.decode_float(grid(golden["latents_other"])), expected, **CLOSE)


def test_trained_position_embeddings_are_loaded(golden: dict[str, Tensor], tmp_path: Path) -> None:
    decoder = load_decoder(str(save(golden, tmp_path / "rae", "decoder_pos_embed_perturbed")), CPU, ENCODER)
    expected = decoder.network.decoder.unpatchify(golden["logits_pos_perturbed"])
    torch.testing.assert_close(decoder.decode_float(grid(golden["latents"])), expected, **CLOSE)


def test_uint8_images_of_the_size_asked(decoder: Decoder, golden: dict[str, Tensor]) -> None:
    latents = grid(golden["latents"])
    images = decoder.decode(latents, 16)
    assert torch.equal(images, (golden["image"] * 255).round().clamp(0, 255).to(torch.uint8))
    assert decoder.decode(latents, 20).shape == (2, 3, 20, 20)


def test_the_tokenizer_decodes_with_it(golden: dict[str, Tensor], tmp_path: Path) -> None:
    folder = save(golden, tmp_path / "rae", "weight:decoder_pos_embed")
    tokenizer = build_tokenizer(ENCODER, CPU, decoder=str(folder))
    images = tokenizer.decode(grid(golden["latents"]))
    assert images.shape == (2, 3, 64, 64)
    assert images.dtype == torch.uint8
    with pytest.raises(UserError, match="channels"):
        tokenizer.decode(torch.zeros(1, 7, 4, 4))


def test_a_decoder_is_recorded_by_its_weights(golden: dict[str, Tensor], tmp_path: Path) -> None:
    """Whether in a folder or a file; where it lies is not what it is."""
    first, second = (
        decoder_inputs(str(save(golden, tmp_path / name, positions)))
        for name, positions in (("a", "weight:decoder_pos_embed"), ("b", "decoder_pos_embed_perturbed"))
    )
    (moved,) = decoder_inputs(str((tmp_path / "a").rename(tmp_path / "c")))
    assert (moved.role, moved.path) == ("decoder", str(tmp_path / "c"))
    assert first[0].fingerprint == moved.fingerprint != second[0].fingerprint
    (tmp_path / "d.pt").write_bytes(b"weights")
    (file,) = decoder_inputs(str(tmp_path / "d.pt"))
    assert (file.path, file.fingerprint) == (str(tmp_path / "d.pt"), file_fingerprint(tmp_path / "d.pt"))
    assert decoder_inputs(None) == ()


def test_a_checkpoint_as_its_authors_store_it(
    golden: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {key.removeprefix("weight:"): tensor for key, tensor in golden.items() if key.startswith("weight:")}
    torch.save(weights | {"decoder_pos_embed": golden["decoder_pos_embed_perturbed"]}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="--decoder: a width of 48 is none of RAE's"):
        load_decoder(str(tmp_path / "model.pt"), CPU, ENCODER)
    monkeypatch.setattr(rae_decoder, "HEADS", {48: 4})
    decoder = load_decoder(str(tmp_path / "model.pt"), CPU, ENCODER)
    mean, std = (torch.tensor(colour).view(3, 1, 1) for colour in IMAGENET)
    expected = decoder.network.decoder.unpatchify(golden["logits_pos_perturbed"]) * std + mean
    torch.testing.assert_close(decoder.decode_float(grid(golden["latents"])), expected, **CLOSE)
    for name, content in {"few": {"decoder_embed.weight": torch.zeros(48, 32)}, "none": [1]}.items():
        torch.save(content, tmp_path / f"{name}.pt")
        with pytest.raises(UserError, match=rf"{name}\.pt") as caught:
            load_decoder(str(tmp_path / f"{name}.pt"), CPU, ENCODER)
        assert "\n" not in str(caught.value)


def test_a_checkpoint_takes_the_colours_of_its_encoder(
    golden: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAE's decoder for SigLIP 2 gives colours with mean and std 1/2; and it is for the last block alone."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**sizes, image_size=32, patch_size=8)
    ).save_pretrained(tmp_path / "siglip")
    spec = SIGLIP2.spec(str(tmp_path / "siglip"), 64)
    weights = {key.removeprefix("weight:"): value for key, value in golden.items() if key.startswith("weight:")}
    torch.save(weights, tmp_path / "model.pt")
    monkeypatch.setattr(rae_decoder, "HEADS", {48: 4})
    decoder = load_decoder(str(tmp_path / "model.pt"), CPU, spec)
    expected = golden["image"] * 0.5 + 0.5
    torch.testing.assert_close(decoder.decode_float(grid(golden["latents"])), expected, **CLOSE)
    with pytest.raises(UserError, match="is for latents of --layers 1, and these are of --layers 2"):
        load_decoder(str(tmp_path / "model.pt"), CPU, SIGLIP2.spec(str(tmp_path / "siglip"), 64, layers=2))


def test_another_model_is_no_decoder() -> None:
    with pytest.raises(UserError, match=r"--decoder .* not an AutoencoderRAE"):
        load_decoder(str(DATA / "rae_encoder"), CPU, ENCODER)
