"""FDr6's networks end to end, on small ones of random weights of their own classes, as timm saves them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf
from torch.nn.functional import interpolate, pad

from gmtool.cli.app import main
from gmtool.errors import MachineError, UserError
from gmtool.evaluation.extractors import EXTRACTORS, FDR, ExtractorSettings, extractor_row
from gmtool.evaluation.extractors.vision import VisionExtractor
from gmtool.evaluation.metrics.fdr6 import NORMALISERS
from gmtool.progress import Progress

CPU = torch.device("cpu")
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8))

SMALL = {"embed_dim": 16, "depth": 1, "num_heads": 2}
NETWORKS = {
    "fdr-convnext": ("convnextv2_base.fcmae_ft_in22k_in1k", {"depths": (1, 1, 1, 1), "dims": (4, 6, 8, 10)}),
    "fdr-dinov2": ("vit_large_patch14_dinov2.lvd142m", {**SMALL, "img_size": 84}),
    "fdr-mae": ("vit_large_patch16_224.mae", SMALL),
    "fdr-siglip": ("vit_so400m_patch16_siglip_256.v2_webli", {**SMALL, "embed_dim": 12}),
    "fdr-clip": ("vit_large_patch14_clip_224.openai", SMALL),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A folder of networks whose biases and norms are not the zeros and ones that they begin with."""
    root = tmp_path_factory.mktemp("fdr")
    for seed, (name, (architecture, sizes)) in enumerate(NETWORKS.items()):
        torch.manual_seed(seed)
        network = timm.create_model(architecture, num_classes=0, **sizes)
        for parameter in network.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        save_for_hf(network, str(root / name), model_args=sizes, safe_serialization=True)
    return root


def opened(name: str, folder: Path) -> VisionExtractor:
    settings = ExtractorSettings(name, fdr_weights=folder)
    family = extractor_row(name).load()
    family.prepare(settings, 0.0, Progress())
    extractor = family.open_extractor(settings, None, CPU, Progress())
    assert family.feature_size(settings, None) == extractor.size
    return extractor


def normalised(side: int, mean: tuple[float, ...], deviation: tuple[float, ...]) -> torch.Tensor:
    resized = interpolate(IMAGES / 255, (side, side), mode="bicubic", antialias=True)
    return (resized - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "side", "colours"),
    [
        ("fdr-convnext", 224, IMAGENET),
        ("fdr-dinov2", 256, IMAGENET),
        ("fdr-mae", 224, IMAGENET),
        ("fdr-siglip", 224, HALF),
        ("fdr-clip", 256, OPENAI),
    ],
)
def test_vectors_are_of_the_published_preprocessing_and_pooling(weights, name, side, colours):
    architecture, sizes = NETWORKS[name]
    pixels = normalised(side, *colours)
    if "vit" in architecture:  # whose published wrapper pads to whole patches; the weights are loaded without gmtool
        whole = 14 * 19 if side == 256 else side
        pixels = pad(pixels, (0, whole - side, 0, whole - side))
        sizes = {**sizes, "img_size": whole}
    network = timm.create_model(architecture, num_classes=0, **sizes).eval()
    network.load_state_dict(
        timm.models.vision_transformer.checkpoint_filter_fn(
            timm.models.load_state_dict(str(weights / name / "model.safetensors")), network
        )
        if "vit" in architecture
        else timm.models.load_state_dict(str(weights / name / "model.safetensors"))
    )
    with torch.inference_mode():
        features = network.forward_features(pixels)
        expected = {
            "fdr-convnext": lambda: features.mean((2, 3)),
            "fdr-siglip": lambda: network.attn_pool(features),
        }.get(name, lambda: features[:, 0])()
    vectors = opened(name, weights)(IMAGES).vectors
    assert vectors.std() > 0.01
    torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-4)


def pictures(folder: Path, seed: int, count: int = 6) -> Path:
    folder.mkdir()
    for index, image in enumerate(np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)):
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


@pytest.mark.slow
def test_fdr6_is_the_mean_of_six_normalised_distances(weights, inception_weights, tmp_path, capsys):
    samples, real = pictures(tmp_path / "samples", 1), pictures(tmp_path / "real", 2, 12)
    flags = ["--features", "fdr6", "--fdr-weights", str(weights), "--inception-weights", str(inception_weights)]
    assert main(["eval", str(samples), "--reference", str(real), *flags, "--intervals", "3"]) == 0
    assert "FDr6" in capsys.readouterr().out
    report = json.loads((tmp_path / "samples.metrics.json").read_text())
    figures = {(figure["metric"], figure["features"]): figure for figure in report["figures"]}
    assert list(report["extractors"]) == ["inception", *FDR]
    for side in ("generated", "real"):
        ratios = [figures["frechet_distance", name][side]["value"] / scale for name, scale in NORMALISERS.items()]
        assert len(ratios) == 6 and figures["fdr6", ""][side]["value"] == pytest.approx(sum(ratios) / 6, rel=1e-12)
    fdr6 = figures["fdr6", ""]["generated"]
    assert fdr6["images"] == 6 and fdr6["low"] <= fdr6["value"] < fdr6["high"]
    assert fdr6["limit"] is None  # of fewer images than features
    assert ("mind", "fdr-mae") in figures and ("precision", "fdr-mae") not in figures


def test_fdr6_takes_all_six(weights, tmp_path, capsys):
    samples = pictures(tmp_path / "samples", 1)
    flags = ["--features", "fdr-mae,fdr-clip", "--fdr-weights", str(weights)]
    assert main(["eval", str(samples), "--reference", str(samples), *flags]) == 0
    assert "FDr6" not in capsys.readouterr().out
    report = json.loads((tmp_path / "samples.metrics.json").read_text())
    values = {figure["features"]: figure["generated"]["value"] for figure in report["figures"]}
    assert values["fdr-mae"] == pytest.approx(0, abs=1e-6) == values["fdr-clip"]


def test_what_is_missing_is_one_line(weights, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="holds no folder fdr-mae"):
        opened("fdr-mae", tmp_path)
    (tmp_path / "fdr-mae").mkdir()
    (tmp_path / "fdr-mae" / "config.json").write_text(json.dumps({"architecture": "vit_none"}))
    (tmp_path / "fdr-mae" / "model.safetensors").write_bytes((weights / "fdr-mae" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"--fdr-weights .* cannot be loaded"):
        extractor_row("fdr-mae").load().open_extractor(
            ExtractorSettings("fdr-mae", fdr_weights=tmp_path), None, CPU, Progress()
        )
    with pytest.raises(UserError, match="--fdr-weights has no effect without"):
        ExtractorSettings("dinov2", fdr_weights=weights)
    with pytest.raises(UserError, match="twice"):
        ExtractorSettings("fdr6,fdr-mae")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MachineError, match=r"needs timm: run pip install .*fdr"):
        opened("fdr-mae", weights)


def test_the_hub_ids_are_the_published_ones():
    known = {row.name: row.weights for row in EXTRACTORS if row.name in FDR}
    assert known == {
        "fdr-convnext": "timm/convnextv2_base.fcmae_ft_in22k_in1k",
        "fdr-dinov2": "timm/vit_large_patch14_dinov2.lvd142m",
        "fdr-mae": "timm/vit_large_patch16_224.mae",
        "fdr-siglip": "timm/vit_so400m_patch16_siglip_256.v2_webli",
        "fdr-clip": "timm/vit_large_patch14_clip_224.openai",
    }
