"""dinov2 against values computed with RAE's public implementation, and its errors."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gmtool.data.image_sets import find_images
from gmtool.data.images import ImageSample
from gmtool.errors import MachineError, UserError
from gmtool.runtime import compute_dtype
from gmtool.tokenizers.build import build_tokenizer
from gmtool.tokenizers.choose import choose_tokenizer
from gmtool.tokenizers.encoder import DINOV2, Encoder
from gmtool.tokenizers.settings import TokenizerSettings

DATA = Path(__file__).parents[1] / "data"
CPU = torch.device("cpu")
CLOSE = {"atol": 2e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(DATA / "rae.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(DINOV2.spec(str(DATA / "rae_encoder"), 64), CPU)


def save_random(folder: Path, **changes: object) -> Path:
    """A small DINOv2 with random weights, saved as transformers does."""
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 28}
    transformers.Dinov2Model(transformers.Dinov2Config(**(sizes | changes))).save_pretrained(folder)
    return folder


def test_patches_and_cls(encoder: Encoder, golden: dict[str, Tensor]) -> None:
    encoded = encoder.encode_normalised(golden["pixel_values"])
    torch.testing.assert_close(encoded.patches, golden["latents_raw"], **CLOSE)
    torch.testing.assert_close(encoded.descriptors, golden["cls_ln"], **CLOSE)


def test_resizing(encoder: Encoder, golden: dict[str, Tensor]) -> None:
    mean, std = golden["image_mean"].view(3, 1, 1), golden["image_std"].view(3, 1, 1)
    resized = encoder.normalise(golden["image_to_resize"])
    torch.testing.assert_close(resized, (golden["image_resized"] - mean) / std, **CLOSE)
    patches = encoder.encode_normalised(resized).patches
    normalised = (patches - golden["stat_mean"]) / (golden["stat_var"] + 1e-5).sqrt()
    torch.testing.assert_close(normalised, golden["latents_from_resized"], **CLOSE)


def test_position_embeddings_of_another_size(encoder: Encoder, golden: dict[str, Tensor]) -> None:
    mean, std = golden["image_mean"].view(3, 1, 1), golden["image_std"].view(3, 1, 1)
    encoded = encoder.encode_normalised((golden["image_interp"] - mean) / std)
    torch.testing.assert_close(encoded.patches, golden["latents_raw_interp"], **CLOSE)


def test_uint8_images_are_scaled_to_one(encoder: Encoder) -> None:
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    encoded = encoder.encode(images)
    expected = encoder.encode_normalised(encoder.normalise(images / 255))
    assert torch.equal(encoded.patches, expected.patches)
    assert torch.equal(encoder.describe(images), expected.descriptors)
    assert tuple(encoded.patches.shape[1:]) == encoder.latent_shape == (32, 4, 4)
    # without affine part, each token has mean 0 and variance 1
    torch.testing.assert_close(encoded.patches.mean(1), torch.zeros(2, 4, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(encoded.patches.var(1, correction=0), torch.ones(2, 4, 4), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("patch", "size"), [(14, 32), (16, 32), (8, 50)])
def test_without_registers_any_patch_size_gives_a_token_for_16_pixels(tmp_path: Path, patch: int, size: int) -> None:
    folder = save_random(tmp_path / "dino", patch_size=patch, image_size=4 * patch)
    tokenizer = Encoder(DINOV2.spec(str(folder), size), CPU)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert tuple(tokenizer.encode(images).patches.shape[1:]) == tokenizer.latent_shape == (16, size // 16, size // 16)


def test_a_token_is_where_its_pixels_are(tmp_path: Path) -> None:
    folder = save_random(tmp_path / "dino", num_hidden_layers=0)  # no attention: a token sees its own patch alone
    tokenizer = Encoder(DINOV2.spec(str(folder), 64), CPU)
    base = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    spot = base.clone()
    spot[..., 20:28, 52:60] = 255  # well inside row 1, column 3
    changed = (tokenizer.encode(spot).patches - tokenizer.encode(base).patches).abs().sum(1)[0] > 1e-3
    assert changed.nonzero().tolist() == [[1, 3]]


def test_lower_precision_stays_near(encoder: Encoder) -> None:
    low = build_tokenizer(encoder.spec(), CPU, "bfloat16")
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    exact, near = encoder.encode(images).patches, low.encode(images).patches
    assert near.dtype == torch.float32
    assert 0 < float((near - exact).abs().max()) < 0.1
    assert compute_dtype("auto", CPU) == torch.float32


def test_the_record_rebuilds_the_encoder_and_notices_other_weights(tmp_path: Path) -> None:
    folder = shutil.copytree(DATA / "rae_encoder", tmp_path / "dino")
    spec = DINOV2.spec(str(folder), 48)
    assert build_tokenizer(spec, CPU).latent_shape == (32, 3, 3)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x00\x00\x80?")
    with pytest.raises(UserError, match="no longer holds the weights"):
        build_tokenizer(spec, CPU)


def test_without_a_decoder_the_error_says_how_to_get_one(encoder: Encoder) -> None:
    with pytest.raises(UserError, match=r"pip install '\.\[rae\]'.*--decoder"):
        encoder.decode(torch.zeros(1, 32, 4, 4))


def test_wrong_models_are_refused_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "dino"
    cases = {"no config.json": lambda: folder.mkdir()}
    shutil.copytree(DATA / "rae_encoder", tmp_path / "good")

    def broken(name: str, text: str) -> None:
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "good", folder)
        (folder / name).write_text(text)

    def unlink() -> None:
        broken("config.json", (tmp_path / "good/config.json").read_text())
        (folder / "model.safetensors").unlink()

    config = json.loads((tmp_path / "good/config.json").read_text())
    cases |= {
        "no .safetensors": unlink,
        "is a bert, no DINOv2, DINOv3, SigLIP or MAE": lambda: broken(
            "config.json", json.dumps({"model_type": "bert"})
        ),
        "cannot be loaded": lambda: broken("model.safetensors", "no weights"),
        "lacks weights": lambda: broken("config.json", json.dumps(config | {"num_hidden_layers": 3})),
    }
    for words, spoil in cases.items():
        spoil()
        with pytest.raises(UserError, match=words) as caught:
            Encoder(DINOV2.spec(str(folder), 64), CPU)
        assert "\n" not in str(caught.value)
        assert "tokenizer" in str(caught.value)


@pytest.mark.parametrize("model", ["./missing", "/missing/folder", "a/b/c", "one-word", "bad name/with spaces!"])
def test_what_is_neither_folder_nor_hub_id(model: str) -> None:
    with pytest.raises(UserError, match="no folder"):
        DINOV2.spec(model, 256)


def test_no_network_is_one_line_and_the_machine_s_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fetch(*_: object, local_files_only: bool = False, **__: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(MachineError, match=r"cannot be fetched.*local folder"):
        DINOV2.spec("facebook/dinov2-with-registers-base", 256)


def test_an_image_too_small_for_a_token() -> None:
    with pytest.raises(UserError, match="--image-size must be at least 16"):
        DINOV2.spec(str(DATA / "rae_encoder"), 8)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_weights_that_never_end_are_not_read(tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(DATA / "rae_encoder", tmp_path / "dino")
    weights = folder / "more.safetensors"
    if kind == "pipe":
        os.mkfifo(weights)
    else:
        weights.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"more\.safetensors is no regular file"):
        DINOV2.spec(str(folder), 64)


def test_a_model_of_another_kind_is_named(tmp_path: Path) -> None:
    """Whether by --tokenizer, where its configuration says what it is, or of a damaged configuration."""
    folder = shutil.copytree(DATA / "rae_encoder", tmp_path / "model")
    Image.new("RGB", (32, 32)).save(tmp_path / "1.png")
    for text, words in (
        ('{"model_type": "bert"}', "is a bert: give a DINOv2, DINOv3, SigLIP or MAE, or an AutoencoderKL"),
        ("{", "cannot be loaded"),
        ("[]", "kind"),
    ):
        (folder / "config.json").write_text(text)
        with pytest.raises(UserError, match=words) as caught:
            choose_tokenizer(TokenizerSettings(str(folder)), ImageSample(find_images(tmp_path), np.arange(1), 0, False))
        assert "\n" not in str(caught.value)
