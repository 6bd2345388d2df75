"""Each kind of encoder against a direct call of transformers' own class; sums of blocks; what is told and refused."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.cli.app import main
from gmtool.errors import UserError
from gmtool.tokenizers.build import build_tokenizer, facts_of_models, latent_sizes
from gmtool.tokenizers.choose import encoder_spec
from gmtool.tokenizers.rae import expect_encoder, record_encoder
from gmtool.tokenizers.table import TOKENIZERS
from gmtool.tokenizers.with_descriptor import described_spec, describer_spec, undescribed

CPU = torch.device("cpu")
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SIDE = 64
SIZES = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
INNER = {**SIZES, "intermediate_size": 24}
TEXT = {**INNER, "vocab_size": 9, "bos_token_id": 1, "eos_token_id": 1}
DECODER = {f"decoder_{name}": value for name, value in {**INNER, "num_hidden_layers": 1}.items()}

Call = Callable[[Any, Tensor], Any]


def plain(network: Any, pixels: Tensor) -> Any:
    return network(pixel_values=pixels, output_hidden_states=True)


def interpolated(network: Any, pixels: Tensor) -> Any:
    return network(pixel_values=pixels, interpolate_pos_encoding=True, output_hidden_states=True)


def unmasked(network: Any, pixels: Tensor) -> Any:
    """All patches are kept whatever the noise, whose order is the tokens': put back by ``ids_restore``."""
    network.config.mask_ratio = 0.0
    output = network(pixel_values=pixels, interpolate_pos_encoding=True, output_hidden_states=True)

    def ordered(tokens: Tensor) -> Tensor:
        back = output.ids_restore[..., None].expand(-1, -1, tokens.shape[-1])
        return torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, back)], 1)

    output.last_hidden_state = ordered(output.last_hidden_state)
    output.hidden_states = tuple(map(ordered, output.hidden_states))
    return output


def naflex(network: Any, pixels: Tensor) -> Any:
    """By transformers' own preprocessing of images that need no resizing."""
    processor = transformers.Siglip2ImageProcessor(
        patch_size=network.config.patch_size, max_num_patches=16, do_rescale=False, do_normalize=False, do_resize=False
    )
    inputs = processor(images=list(pixels), return_tensors="pt")
    return network(**inputs, output_hidden_states=True)


@dataclass(frozen=True)
class Case:
    """A kind of encoder: how to make a small one, its name, its pixels, and how its class is called.

    dropped: tokens before the patches. own: the network that is called, where only a part of what is saved serves.
    """

    name: str
    make: Callable[[], Any]
    call: Call
    dropped: int
    patch: int
    norm: str
    mean: float | None = None
    own: Callable[[Any], Any] = lambda model: model


CASES = {
    "dinov2": Case(
        "dinov2",
        lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, patch_size=14, image_size=28)),
        plain,
        dropped=1,
        patch=14,
        norm="layernorm",
    ),
    "dinov2-registers": Case(
        "dinov2",
        lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**SIZES, patch_size=7, image_size=28, num_register_tokens=3)
        ),
        plain,
        dropped=4,
        patch=7,
        norm="layernorm",
    ),
    "dinov3": Case(
        "dinov3",
        lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**INNER, patch_size=8, num_register_tokens=2)),
        plain,
        dropped=3,
        patch=8,
        norm="norm",
    ),
    "siglip": Case(
        "siglip2",
        lambda: transformers.SiglipModel(
            transformers.SiglipConfig(vision_config={**INNER, "image_size": 48, "patch_size": 16}, text_config=TEXT)
        ),
        interpolated,
        dropped=0,
        patch=16,
        norm="post_layernorm",
        mean=0.5,
        own=lambda model: model.vision_model,
    ),
    "siglip-without-head": Case(
        "siglip2",
        lambda: transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(**INNER, image_size=32, patch_size=8, vision_use_head=False)
        ),
        interpolated,
        dropped=0,
        patch=8,
        norm="post_layernorm",
        mean=0.5,
    ),
    "naflex": Case(
        "siglip2",
        lambda: transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**INNER, num_patches=9, patch_size=8)),
        naflex,
        dropped=0,
        patch=8,
        norm="post_layernorm",
        mean=0.5,
    ),
    "mae": Case(
        "mae",
        lambda: transformers.ViTMAEForPreTraining(
            transformers.ViTMAEConfig(**INNER, **DECODER, image_size=24, patch_size=8)
        ),
        unmasked,
        dropped=1,
        patch=8,
        norm="layernorm",
        own=lambda model: model.vit,
    ),
}


@dataclass(frozen=True)
class Made:
    """A case, its network as it was made, its last norm without affine part, and the folder it was saved to."""

    case: Case
    network: Any
    folder: Path


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    case = CASES[request.param]
    torch.manual_seed(0)
    model, folder = case.make().eval(), tmp_path_factory.mktemp(request.param)
    for weights in model.parameters():  # also of the norms, whose affine part must not matter
        nn.init.normal_(weights, std=0.3)
    model.save_pretrained(folder)
    network = case.own(model)
    setattr(network, case.norm, nn.LayerNorm(16, eps=network.config.layer_norm_eps, elementwise_affine=False))
    return Made(case, network, folder)


def images(count: int = 2, side: int = SIDE) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def pixels_of(case: Case) -> Tensor:
    """What the network sees: 4 x 4 patches, less the mean, over the std."""
    size = (4 * case.patch, 4 * case.patch)
    resized = functional.interpolate(images() / 255, size=size, mode="bicubic", align_corners=False)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    if case.mean is not None:
        mean = std = torch.full((3, 1, 1), case.mean)
    return (resized - mean) / std


@torch.inference_mode()
def test_latents_and_descriptor_are_those_of_the_class_itself(made: Made) -> None:
    case = made.case
    spec = encoder_spec(str(made.folder), SIDE, "--tokenizer")
    assert (spec.name, spec.layers) == (case.name, 1)
    tokenizer = build_tokenizer(spec, CPU)
    latents = tokenizer.encode(images())
    output = case.call(made.network, pixels_of(case))
    tokens = output.last_hidden_state
    assert tokens.shape[1] == case.dropped + 16
    expected = tokens[:, case.dropped :].transpose(1, 2).reshape(2, 16, 4, 4)
    torch.testing.assert_close(latents.patches, expected, **CLOSE)
    pooled = getattr(output, "pooler_output", None)
    if case.dropped:
        pooled = tokens[:, 0]
    elif pooled is None:
        pooled = tokens.mean(1)
    torch.testing.assert_close(latents.descriptors, pooled, **CLOSE)
    torch.testing.assert_close(tokenizer.describe(images()), pooled, **CLOSE)
    assert latent_sizes(spec, 1).shape == tokenizer.latent_shape == (16, 4, 4)
    assert latent_sizes(spec, 1).descriptor == tokenizer.descriptor_size == 16


@torch.inference_mode()
def test_three_layers_are_the_sum_written_out(made: Made) -> None:
    case = made.case
    spec = encoder_spec(str(made.folder), SIDE, "--tokenizer")
    several = build_tokenizer(TokenizerSpec(spec.name, {**spec.settings, "layers": 3}), CPU).encode(images())
    states = case.call(made.network, pixels_of(case)).hidden_states
    norm = getattr(made.network, case.norm)
    tokens = (norm(states[-3]) + norm(states[-2]) + norm(states[-1]))[:, case.dropped :]
    torch.testing.assert_close(several.patches, tokens.transpose(1, 2).reshape(2, 16, 4, 4), atol=1e-5, rtol=1e-5)
    one = build_tokenizer(spec, CPU).encode(images())
    assert torch.equal(one.descriptors, several.descriptors)
    assert float((several.patches - one.patches).abs().mean()) > 0.1


def test_what_the_files_settle_is_told(made: Made) -> None:
    facts = dict(facts_of_models(encoder_spec(str(made.folder), SIDE, "--tokenizer")))
    case, config = made.case, made.network.config
    assert facts["encoder"].endswith(f"4 blocks of 16, patches of {case.patch} px")
    mean = "0.5/0.5/0.5" if case.mean else "0.485/0.456/0.406"
    assert facts["encoder input"].startswith(f"64 px resized to {4 * case.patch}, mean {mean}, std")
    registers = getattr(config, "num_register_tokens", 0)
    dropped = "no token" if not case.dropped else f"[CLS] and {registers} registers" if registers else "[CLS]"
    assert facts["latents"].startswith("4 x 4 tokens of the last block under the last LayerNorm")
    assert facts["latents"].endswith(f"; {dropped} dropped")
    pooled = {True: "its attention pooling", False: "the mean token, since it pools nothing"}
    expected = "[CLS] of the last block" if case.dropped else pooled[config.vision_use_head]
    assert facts["descriptor"] == expected


def test_the_preprocessor_s_mean_and_std_count(made: Made, tmp_path: Path) -> None:
    folder = shutil.copytree(made.folder, tmp_path / "model")
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    tokenizer: Any = build_tokenizer(encoder_spec(str(folder), SIDE, "--tokenizer"), CPU)
    grey = tokenizer.normalise(torch.full((1, 3, SIDE, SIDE), 0.5))[0, :, 0, 0]
    torch.testing.assert_close(grey, torch.tensor([1.0, 0.6, 0.2 / 0.6]))


def dinov2(folder: Path, patch: int = 14) -> Path:
    torch.manual_seed(0)
    config = transformers.Dinov2Config(**SIZES, patch_size=patch, image_size=2 * patch)
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("patch", [14, 16])
def test_512_pixels_are_32_by_32_tokens(tmp_path: Path, patch: int) -> None:
    spec = encoder_spec(str(dinov2(tmp_path / "model", patch)), 512, "--tokenizer")
    assert latent_sizes(spec, 1).shape == (16, 32, 32)
    tokenizer: Any = build_tokenizer(spec, CPU)
    assert tokenizer.normalise(torch.zeros(1, 3, 512, 512)).shape[-1] == {14: 448, 16: 512}[patch]
    assert tokenizer.encode(images(1, 512)).patches.shape == (1, 16, 32, 32)


# --- the commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with four pictures in pictures/ and an encoder in model/."""
    draws = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(4):
        Image.fromarray(draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"pictures/{number}.png")
    dinov2(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


ENCODE = ["encode", "pictures", "latents.h5", "--image-size", "32", "--workers", "0", "--device", "cpu"]


def test_encode_tells_and_records_the_number_of_layers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ENCODE, "--tokenizer", "model", "--layers", "2"]) == 0
    told = capsys.readouterr().err
    assert "encoder: dinov2, 4 blocks of 16, patches of 14 px" in told
    assert "2 x 2 tokens of the last 2 blocks, summed," in told
    with open_latents(here / "latents.h5") as latents:
        assert latents.tokenizer.layers == latents.manifest.config["layers"] == 2
    assert main([*ENCODE, "--tokenizer", "model", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "32 px resized to 28, mean 0.485/0.456/0.406" in shown and "[CLS] of the last block" in shown


def test_one_layer_is_the_record_of_earlier_versions(here: Path) -> None:
    """Latents that were encoded before there was a choice stay what they are, and need not be encoded again."""
    assert main([*ENCODE, "--tokenizer", "model", "--layers", "1"]) == 0
    with open_latents(here / "latents.h5") as latents:
        assert set(latents.tokenizer.settings) == {"model", "weights", "image_size"}
        assert latents.tokenizer.layers == 1


def test_another_encoder_can_describe(here: Path) -> None:
    torch.manual_seed(1)
    CASES["siglip"].make().save_pretrained(here / "siglip")
    assert main([*ENCODE, "--tokenizer", "pixels", "--descriptor", "siglip"]) == 0
    with open_latents(here / "latents.h5") as latents:
        tokenizer = build_tokenizer(latents.tokenizer, CPU)
        with Image.open(here / "pictures/0.png") as picture:
            pixels = torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())[None]
        own = build_tokenizer(encoder_spec(str(here / "siglip"), 32, "--tokenizer"), CPU).describe(pixels)
        torch.testing.assert_close(tokenizer.describe(pixels), own)
        np.testing.assert_allclose(latents.descriptors([0]), own, atol=1e-5)


def spoil_to_bert(here: Path) -> None:
    (here / "model/config.json").write_text('{"model_type": "bert"}')


@pytest.mark.parametrize(
    ("spoil", "arguments", "words"),
    [
        (spoil_to_bert, ["--tokenizer", "model"], "model is a bert: give a DINOv2, DINOv3, SigLIP or MAE, or an Auto"),
        (
            spoil_to_bert,
            ["--tokenizer", "pixels", "--descriptor", "model"],
            "--descriptor model is a bert: give a DINO",
        ),
        (lambda here: (here / "model/config.json").unlink(), ["--tokenizer", "model"], "holds no config.json"),
        (lambda _: None, ["--tokenizer", "model", "--layers", "5"], "--layers 5: model has 4 blocks; use at most"),
        (lambda _: None, ["--tokenizer", "pixels", "--layers", "2"], "--layers is a setting of --tokenizer dinov2 or "),
        (
            lambda _: None,
            ["--tokenizer", "pixels", "--descriptor", "sd-vae"],
            "--descriptor sd-vae is no encoder: give",
        ),
        (lambda _: None, ["--tokenizer", "model", "--image-size", "15"], "--image-size must be at least 16"),
    ],
)
def test_bad_encoders_are_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], arguments: list[str], words: str
) -> None:
    spoil(here)
    assert main([*ENCODE, *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert not (here / "latents.h5").exists()


def test_weights_of_before_safetensors_are_read_as_tensors(here: Path) -> None:
    """As facebook/vit-mae-base has them; other weights are noticed, and a pickle of anything else is not executed."""
    folder = shutil.copytree(here / "model", here / "old")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    spec = encoder_spec(str(folder), 32, "--tokenizer")
    new = build_tokenizer(encoder_spec(str(here / "model"), 32, "--tokenizer"), CPU).encode(images(1, 32))
    assert torch.equal(build_tokenizer(spec, CPU).encode(images(1, 32)).patches, new.patches)
    torch.save({name: value + 1 for name, value in weights.items()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="no longer holds the weights"):
        build_tokenizer(spec, CPU)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Executed(here / "executed"), protocol=2))
    with pytest.raises(UserError, match="holds more than tensors in its weights: save them as safetensors"):
        build_tokenizer(encoder_spec(str(folder), 32, "--tokenizer"), CPU)
    assert not (here / "executed").exists()


class Executed:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(("name", "patch"), [("dinov2", 14), ("dinov3", 16), ("siglip2", 16), ("mae", 16)])
def test_the_default_models_are_of_the_sizes_that_presets_count_on(name: str, patch: int) -> None:
    family: Any = TOKENIZERS[name].family()
    with torch.device("meta"):
        config = family.random(transformers).config
    assert (config.hidden_size, config.patch_size) == (768, patch)
    assert family.default_sizes(512).shape == (768, 32, 32)
    assert family.recognises({"model_type": config.model_type})


def test_a_describer_without_a_name_is_a_dinov2(tmp_path: Path) -> None:
    """As versions wrote it that knew no other."""
    spec = TokenizerSpec("pixels", {"image_size": 32, "descriptor": dict(a_spec().settings)})
    assert describer_spec(spec) == a_spec()
    other = described_spec(undescribed(spec), a_spec("mae"))
    assert describer_spec(other) == a_spec("mae") and undescribed(other) == undescribed(spec)


@pytest.mark.parametrize("name", ["dinov3", "siglip2", "mae"])
def test_no_network_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import huggingface_hub

    def fetch(*_: object, **__: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert main([*ENCODE, "--tokenizer", name]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "cannot be fetched from huggingface.co (no network?): give a local folder" in line


# --- decoders know their encoder --------------------------------------------------------------------------------------


def a_spec(name: str = "dinov2", weights: str = "aa", **settings: object) -> TokenizerSpec:
    return TokenizerSpec(name, {"model": f"models/{name}", "weights": weights, "image_size": 64, **settings})


@pytest.mark.parametrize(
    ("trained", "asked", "words"),
    [
        (a_spec(), a_spec(), None),
        (a_spec(layers=3), a_spec(layers=3), None),
        (a_spec(layers=3), a_spec(), "--decoder d is for latents of --layers 3, and these are of --layers 1"),
        (a_spec(), a_spec(layers=2), "--decoder d is for latents of --layers 1, and these are of --layers 2"),
        (a_spec("mae"), a_spec(), "--decoder d is for latents of mae, not of dinov2"),
        (a_spec(), a_spec("dinov3"), "--decoder d is for latents of dinov2, not of dinov3"),
        (
            a_spec(weights="bb"),
            a_spec(),
            "--decoder d is for latents of another dinov2 .models/dinov2, not models/dino",
        ),
        (None, a_spec("siglip2"), None),
        (None, a_spec("siglip2", layers=2), "is for latents of --layers 1, and these are of --layers 2"),
        (None, a_spec(), "--decoder d is for latents of siglip2, not of dinov2"),
    ],
)
def test_a_decoder_is_for_one_encoder_and_number_of_layers(
    tmp_path: Path, trained: TokenizerSpec | None, asked: TokenizerSpec, words: str | None
) -> None:
    """trained: what the folder records; None for one of diffusers alone, which names the encoder's kind."""
    (tmp_path / "config.json").write_text(json.dumps({"encoder_type": "siglip2"}))
    if trained is not None:
        record_encoder(tmp_path, trained)
    if words is None:
        expect_encoder(tmp_path, asked, "d")
        return
    with pytest.raises(UserError, match=words) as caught:
        expect_encoder(tmp_path, asked, "d")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_sample_refuses_the_decoder_of_another_encoder_or_number_of_layers(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diffusers = pytest.importorskip("diffusers")
    sizes = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    encoder = {"encoder_hidden_size": 16, "encoder_num_hidden_layers": 0, "encoder_input_size": 28}
    for name in ("two", "siglip"):
        kind = "siglip2" if name == "siglip" else "dinov2"
        network = diffusers.AutoencoderRAE(
            encoder_type="dinov2", decoder_intermediate_size=16, patch_size=16, **sizes, **encoder
        )
        network.save_pretrained(here / name)
        config = json.loads((here / name / "config.json").read_text())
        (here / name / "config.json").write_text(json.dumps({**config, "encoder_type": kind}))
    assert main([*ENCODE, "--tokenizer", "model", "--layers", "2"]) == 0
    train = ["--steps", "1", "--batch-size", "4", "--preview-every", "0", "--device", "cpu", "--no-tensorboard"]
    assert main(["train", "latents.h5", "run", *train]) == 0
    sample = ["sample", "run", "samples", "--num", "2", "--steps", "1", "--device", "cpu", "--decoder"]
    capsys.readouterr()
    for decoder, words in (
        ("two", "--decoder two is for latents of --layers 1, and these are of --layers 2"),
        ("siglip", "--decoder siglip is for latents of siglip2, not of dinov2: give one trained for these"),
    ):
        assert main([*sample, decoder]) == 2
        assert words in capsys.readouterr().err.strip().splitlines()[-1]
        assert not list(here.glob("samples*"))
    with open_latents(here / "latents.h5") as latents:
        record_encoder(here / "two", latents.tokenizer)
    assert main([*sample, "two"]) == 0


def test_a_damaged_record_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "encoder.json").write_text("{")
    with pytest.raises(UserError, match=r"encoder\.json is damaged"):
        expect_encoder(tmp_path, a_spec(), "d")
