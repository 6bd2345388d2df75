"""DINOv2, CLIP and VGG16 end to end, on small networks of random weights of their own classes, saved to disk."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import transformers
from PIL import Image
from torch.nn.functional import interpolate

from gmtool.cli.app import main
from gmtool.errors import UserError
from gmtool.evaluation.extractors import EXTRACTORS, ExtractorSettings, extractor_row
from gmtool.evaluation.features import Extractor
from gmtool.progress import Progress

CPU = torch.device("cpu")
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8))


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory) -> Path:
    """A DINOv2 of 16 numbers whose position embeddings are of 6 x 6 patches, not the 16 x 16 of 224 px."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14, "image_size": 84}
    network = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    torch.nn.init.normal_(network.embeddings.position_embeddings)
    folder = tmp_path_factory.mktemp("models") / "dinov2"
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "patch_size": 8,
        "image_size": 24,
        "projection_dim": 12,
    }
    folder = tmp_path_factory.mktemp("models") / "clip"
    transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**sizes)).save_pretrained(folder)
    return folder


def opened(name: str, **weights: object) -> Extractor:
    settings = ExtractorSettings(name, **{f"{name}_weights": weights["weights"]})
    family = extractor_row(name).load()
    family.prepare(settings, 0.0, Progress())
    extractor = family.open_extractor(settings, None, CPU, Progress())
    assert family.feature_size(settings, None) == extractor.size
    return extractor


def test_dinov2_is_the_class_token_of_published_preprocessing(dinov2):
    extractor = opened("dinov2", weights=str(dinov2))
    network = transformers.Dinov2Model.from_pretrained(dinov2).eval()
    pixels = torch.stack([IMAGES[:, 0] / 255 - 0.485, IMAGES[:, 1] / 255 - 0.456, IMAGES[:, 2] / 255 - 0.406], 1)
    pixels = interpolate(pixels, (224, 224), mode="bicubic", antialias=True)
    pixels = pixels / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    # the published network resizes its 6 x 6 position embeddings by the factor (16 + 0.1) / 6
    table = network.embeddings.position_embeddings[0, 1:].T.reshape(1, 16, 6, 6)
    resized = interpolate(table, scale_factor=16.1 / 6, mode="bicubic")
    assert resized.shape[2:] == (16, 16)
    patches = network.embeddings.patch_embeddings(pixels) + resized.flatten(2).transpose(1, 2)
    first = network.embeddings.cls_token + network.embeddings.position_embeddings[:, :1]
    tokens = torch.cat([first.expand(3, -1, -1), patches], 1)
    for layer in network.encoder.layer if hasattr(network.encoder, "layer") else network.encoder.layers:
        tokens = layer(tokens)[0] if isinstance(layer(tokens), tuple) else layer(tokens)
    expected = network.layernorm(tokens)[:, 0]
    torch.testing.assert_close(extractor(IMAGES).vectors, expected, rtol=1e-4, atol=1e-5)


def test_clip_embeddings_have_length_one(clip):
    extractor = opened("clip", weights=str(clip))
    network = transformers.CLIPVisionModelWithProjection.from_pretrained(clip).eval()
    processor = transformers.CLIPImageProcessor(do_resize=False, do_center_crop=False, do_rescale=False)
    resized = interpolate(IMAGES / 255, (24, 24), mode="bicubic", antialias=True)
    mean, deviation = (torch.tensor(colour).view(3, 1, 1) for colour in (processor.image_mean, processor.image_std))
    expected = network((resized - mean) / deviation).image_embeds
    vectors = extractor(IMAGES).vectors
    torch.testing.assert_close(vectors, expected / expected.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))


def test_a_whole_clip_and_one_without_safetensors(clip, tmp_path):
    vision = transformers.CLIPVisionModelWithProjection.from_pretrained(clip)
    for place in ("whole", "pickled"):
        (tmp_path / place).mkdir()
    torch.manual_seed(1)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**text, "vocab_size": 20}, vision_config=vision.config.to_dict(), projection_dim=12
    )
    whole = transformers.CLIPModel(config)
    whole.load_state_dict(vision.state_dict(), strict=False)
    whole.save_pretrained(tmp_path / "whole")
    torch.save(whole.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "pickled" / "config.json").write_text((tmp_path / "whole" / "config.json").read_text())
    expected = opened("clip", weights=str(clip))(IMAGES).vectors
    for place in ("whole", "pickled"):
        torch.testing.assert_close(opened("clip", weights=str(tmp_path / place))(IMAGES).vectors, expected)


def test_the_wrong_weights_are_one_line(dinov2, clip, tmp_path):
    for name, folder in (("clip", dinov2), ("dinov2", clip)):
        with pytest.raises(UserError, match=f"--{name}-weights .* holds a network of type"):
            opened(name, weights=str(folder))
    with pytest.raises(UserError, match=r"holds no config\.json"):
        opened("clip", weights=str(tmp_path))
    with pytest.raises(UserError, match="--clip-weights has no effect with --features dinov2"):
        ExtractorSettings("dinov2", clip_weights="x")
    (tmp_path / "vgg.pth").write_text("no weights")
    with pytest.raises(UserError, match=r"vgg\.pth does not hold the weights of torchvision's VGG16"):
        opened("vgg16", weights=tmp_path / "vgg.pth")


@pytest.mark.slow
def test_vgg16_is_torch_fidelitys(tmp_path):
    with torch.device("meta"):
        shapes = torchvision.models.vgg16().state_dict()
    torch.manual_seed(0)
    torch.save({name: 0.02 * torch.randn(shape.shape) for name, shape in shapes.items()}, tmp_path / "vgg.pth")
    vectors = opened("vgg16", weights=tmp_path / "vgg.pth")(IMAGES).vectors
    assert vectors.shape == (3, 4096) and vectors.min() == 0 and vectors.std() > 0


def test_a_table_by_several_extractors(dinov2, clip, world, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for index, image in enumerate(IMAGES.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(tmp_path / "images" / f"{index}.png")
    features = ["--features", "dinov2,inception,clip", "--dinov2-weights", str(dinov2), "--clip-weights", str(clip)]
    assert main(["eval", str(tmp_path / "images"), "--reference", str(tmp_path / "images"), *features]) == 0
    captured = capsys.readouterr()
    for text in ("FD-DINOv2", "CMMD", "precision (dinov2)"):
        assert text in captured.out
    assert "FID" not in captured.out and "left out: Inception weights could not be fetched" in captured.err
    report = json.loads((tmp_path / "images.metrics.json").read_text())
    values = {(figure["features"], figure["metric"]): figure["generated"]["value"] for figure in report["figures"]}
    assert values["clip", "cmmd"] == pytest.approx(0, abs=1e-6) == values["dinov2", "frechet_distance"]
    assert ("clip", "precision") not in values and ("dinov2", "cmmd") not in values
    assert list(report["extractors"]) == ["dinov2", "clip"]


def test_the_hub_ids_stand_in_one_table():
    known = {row.name: row.weights for row in EXTRACTORS}
    assert known["dinov2"] == "facebook/dinov2-large" and known["clip"] == "openai/clip-vit-large-patch14-336"
