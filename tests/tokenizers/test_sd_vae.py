"""sd-vae against diffusers itself, descriptors by a DINOv2, the whole chain, and the errors."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.samples import open_samples
from gmtool.cli.app import main
from gmtool.errors import UserError
from gmtool.progress import Progress
from gmtool.stages.encode.config import EncodeConfig
from gmtool.stages.encode.run import encode_images
from gmtool.tokenizers import sd_vae
from gmtool.tokenizers.build import build_tokenizer
from gmtool.tokenizers.encoder import DINOV2, Encoder
from gmtool.tokenizers.sd_vae import SdVae, sd_vae_spec
from gmtool.tokenizers.settings import TokenizerSettings

diffusers = pytest.importorskip("diffusers")

DINO = Path(__file__).parents[1] / "data" / "rae_encoder"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random AutoencoderKL: 4 channels at half the side, with a scale and a shift that are no defaults."""
    torch.manual_seed(0)
    network = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.5,
        shift_factor=0.25,
    )
    path = tmp_path_factory.mktemp("vae")
    network.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pictures(images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures of 16 px in two classes."""
    root = tmp_path_factory.mktemp("pictures") / "images"
    rng = np.random.default_rng(0)
    for index in range(24):
        path = root / "ab"[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return root


def test_latents_are_the_scaled_posterior_mean(folder: Path, images: Tensor) -> None:
    network = diffusers.AutoencoderKL.from_pretrained(folder)
    tokenizer = SdVae(sd_vae_spec(str(folder), 16), CPU)
    with torch.no_grad():
        mean = network.encode(images / 127.5 - 1).latent_dist.mean
    encoded = tokenizer.encode(images)
    assert tuple(encoded.patches.shape[1:]) == tokenizer.latent_shape == (4, 8, 8)
    torch.testing.assert_close(encoded.patches, (mean - 0.25) * 0.5)
    # a grid of 4 x 4 averages over 2 x 2 entries
    expected = encoded.patches.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5)).flatten(1)
    torch.testing.assert_close(encoded.descriptors, expected)
    assert expected.shape[1] == tokenizer.descriptor_size == 64
    assert torch.equal(tokenizer.describe(images), encoded.descriptors)


def test_decoding_inverts_the_scale(folder: Path, images: Tensor) -> None:
    network = diffusers.AutoencoderKL.from_pretrained(folder)
    tokenizer = SdVae(sd_vae_spec(str(folder), 16), CPU)
    latents = tokenizer.encode(images).patches
    with torch.no_grad():
        signed = network.decode(latents / 0.5 + 0.25).sample
    decoded = tokenizer.decode(latents)
    assert decoded.dtype == torch.uint8 and decoded.shape == images.shape
    torch.testing.assert_close(decoded.float(), ((signed + 1) * 127.5).clamp(0, 255), atol=0.5001, rtol=0)


def test_a_batch_goes_through_the_network_in_parts(
    folder: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = SdVae(sd_vae_spec(str(folder), 16), CPU)
    whole = tokenizer.encode(images).patches
    monkeypatch.setattr(sd_vae, "IMAGES_A_CALL", 2)
    torch.testing.assert_close(tokenizer.encode(images).patches, whole)
    assert tokenizer.decode(whole).shape == images.shape


@pytest.mark.gpu
def test_a_gpu_gives_the_same(folder: Path, images: Tensor) -> None:
    spec = sd_vae_spec(str(folder), 16)
    here, there = SdVae(spec, CPU), SdVae(spec, torch.device("cuda"))
    latents = here.encode(images).patches
    torch.testing.assert_close(there.encode(images).patches.cpu(), latents, atol=5e-3, rtol=5e-3)  # TF32
    assert (there.decode(latents).cpu().int() - here.decode(latents).int()).abs().max() <= 2
    low = SdVae(spec, torch.device("cuda"), torch.bfloat16).encode(images).patches
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.cpu(), latents, atol=0.1, rtol=0.1)


def test_the_record_rebuilds_it_and_notices_other_weights(folder: Path, images: Tensor, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "vae")
    spec = sd_vae_spec(str(copy), 16)
    low = build_tokenizer(spec, CPU, "bfloat16")
    difference = low.encode(images).patches - SdVae(spec, CPU).encode(images).patches
    assert 0 < float(difference.abs().max()) < 0.1
    with pytest.raises(UserError, match="--decoder is for latents of an encoder; those of sd-vae need none"):
        build_tokenizer(spec, CPU, decoder="somewhere")
    with (copy / "diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x00\x00\x80?")
    with pytest.raises(UserError, match="no longer holds the weights"):
        build_tokenizer(spec, CPU)


@pytest.mark.parametrize("tokenizer", ["sd-vae", "pixels"])
def test_a_dinov2_can_describe(folder: Path, pictures: Path, tmp_path: Path, tokenizer: str) -> None:
    name = str(folder) if tokenizer == "sd-vae" else tokenizer
    config = EncodeConfig(TokenizerSettings(name, image_size=16, descriptor=str(DINO)), workers=0, device="cpu")
    report = encode_images(pictures, tmp_path / "latents.h5", config, Progress())
    assert report.descriptor_size == 32
    describer = Encoder(DINOV2.spec(str(DINO), 16), CPU)
    with open_latents(tmp_path / "latents.h5") as latents:
        first = np.array(Image.open(pictures / latents.names()[0]))
        image = torch.from_numpy(first).permute(2, 0, 1)[None]
        expected = describer.describe(image)
        torch.testing.assert_close(torch.from_numpy(latents.descriptors([0])), expected, atol=1e-5, rtol=1e-5)
        rebuilt = build_tokenizer(latents.tokenizer, CPU)
        assert rebuilt.descriptor_size == 32
        torch.testing.assert_close(rebuilt.describe(image), expected)
        assert rebuilt.spec().settings == latents.tokenizer.settings
        again = rebuilt.encode(image)
        stored = torch.from_numpy(latents.patches([0])).float()
        torch.testing.assert_close(again.patches, stored, atol=1e-3, rtol=1e-3)
        assert rebuilt.decode(again.patches).shape == image.shape
    assert not encode_images(pictures, tmp_path / "latents.h5", config, Progress()).fresh
    with pytest.raises(UserError, match=r"--descriptor is for --tokenizer pixels or sd-vae"):
        encode_images(
            pictures, tmp_path / "x.h5", EncodeConfig(TokenizerSettings(str(DINO), descriptor=str(DINO))), Progress()
        )


@pytest.mark.slow
def test_from_images_to_pictures(
    folder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (
        f"encode {pictures} --tokenizer {folder} --image-size 16 --workers 0 --device cpu",
        "fit-gmm --modes 2 --device cpu",
        "train --objective gm-kl --source gmm --steps 2 --preview-every 2 --device cpu",
        "sample --steps 4 --num 4 --device cpu",
        "eval --features tokenizer --device cpu",
    ):
        assert main(shlex.split(command)) == 0, capsys.readouterr().err
    samples = open_samples(tmp_path / "samples")
    assert samples.images().shape == (4, 16, 16, 3)
    with open_latents(samples.latents) as latents:
        assert latents.shape == (4, 8, 8)
        assert latents.tokenizer.name == "sd-vae"
        decoded = build_tokenizer(latents.tokenizer, CPU).decode(torch.from_numpy(latents.patches(slice(None))))
        difference = decoded.permute(0, 2, 3, 1).int() - torch.from_numpy(samples.images()).int()
        assert difference.abs().max() <= 1  # float16 in the file
    assert (tmp_path / "run/previews/step-00000002.png").is_file()


def test_what_is_wrong_is_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    config = json.loads((folder / "config.json").read_text())

    def refused(words: str, size: int = 16) -> None:
        with pytest.raises(UserError, match=words) as caught:
            SdVae(sd_vae_spec(str(other), size), CPU)
        assert "\n" not in str(caught.value)

    refused("--image-size 15: this autoencoder takes multiples of 2", 15)
    (other / "config.json").write_text(json.dumps(config | {"layers_per_block": 2}))
    refused("lacks weights")
    (other / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DModel"}))
    refused("is a UNet2DModel, no AutoencoderKL")
    (other / "config.json").write_text("{")
    refused("cannot be loaded")
    (other / "config.json").write_text(json.dumps(config))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    refused(r"pip install '\.\[sd-vae\]'")
