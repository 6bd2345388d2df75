"""The five stages as a user types them, in a folder that holds only images."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.run import open_run
from gmtool.artifacts.samples import open_samples
from gmtool.cli.app import main

SIDE = 64


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """128 crops of 64 px, real colour photographs, in two class folders: china and flower."""
    root = tmp_path_factory.mktemp("photographs") / "DIR"
    for name, photograph in zip(("china", "flower"), load_sample_images().images, strict=True):
        (root / name).mkdir(parents=True)
        places = [(top, left) for top in range(0, 384, SIDE) for left in range(0, 640 - SIDE + 1, SIDE)]
        for index, (top, left) in enumerate(places):
            Image.fromarray(photograph[top : top + SIDE, left : left + SIDE]).save(root / name / f"{index:03d}.png")
    return root


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; no Inception weights are available, and none can be fetched."""
    from torch_fidelity import feature_extractor_inceptionv3 as upstream

    monkeypatch.setenv("TORCH_HOME", str(tmp_path.parent / "no-cache"))
    monkeypatch.setattr(upstream, "URL_INCEPTION_V3", "http://127.0.0.1:9/weights-01234567.pth")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


def types(*commands: str) -> None:
    for command in commands:
        assert main(shlex.split(command)) == 0, command


@pytest.mark.slow
@pytest.mark.parametrize("flat", [False, True], ids=["classes", "flat"])
def test_the_chain(folder: Path, photographs: Path, flat: bool, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "DIR").mkdir()
    for image in photographs.rglob("*.png"):
        name = f"{image.parent.name}-{image.name}" if flat else f"{image.parent.name}/{image.name}"
        (folder / "DIR" / name).parent.mkdir(exist_ok=True)
        (folder / "DIR" / name).symlink_to(image)
    types("encode DIR --tokenizer pixels", "fit-gmm --modes 8", "train --objective gm-kl --steps 3")
    types("sample --steps 6 --guidance prob --num 24", "eval")
    names = {path.name for path in folder.iterdir()}
    assert names == {"DIR", "latents.h5", "gmm.h5", "gmm.png", "run", "samples"}
    assert not list(folder.rglob(".*"))
    run = open_run(folder / "run")
    assert run.method.condition == ("mode" if flat else "class")
    assert run.architecture.shape == (192, 8, 8)
    samples = open_samples(folder / "samples")
    assert samples.images().shape == (24, SIDE, SIDE, 3)
    assert samples.manifest.details["plan"]["guidance"] == "prob"
    with open_latents(samples.latents) as latents:
        assert np.bincount(latents.labels + 1).tolist() == ([24] if flat else [0, 12, 12])
    metrics = json.loads((folder / "samples/metrics.json").read_text())
    assert metrics["features"] == "tokenizer"
    assert all(np.isfinite(figure["generated"]["value"]) for figure in metrics["figures"])
    shown = capsys.readouterr()
    assert "Fréchet distance" in shown.out
    # each command again: it resumes, or does the same again
    types("encode DIR --tokenizer pixels", "fit-gmm --modes 8", "train --objective gm-kl --steps 3")
    assert "nothing to do" in capsys.readouterr().out
    assert not list(folder.rglob(".*"))


@pytest.mark.slow
def test_the_chain_with_a_dinov2_from_a_folder(
    folder: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to and including the latents: without a decoder the message says how to get pictures."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 56}
    transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**sizes)).save_pretrained(
        tmp_path / "dino"
    )
    types(f"encode {photographs} --tokenizer {tmp_path / 'dino'} --image-size 64", "fit-gmm --modes 8")
    types("train --objective gm-kl --steps 2", "sample --steps 6 --guidance prob --num 24")
    shown = capsys.readouterr()
    assert "become images by a decoder trained for it: run pip install '.[rae]'" in shown.out
    assert "no preview grids: latents of an encoder become images by a decoder alone; draw them with" in shown.err
    assert 0 < shown.err.index("latents alone will be written, and no images: ") < shown.err.index("sample: 24/24")
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["latents.h5", "sampling.json"]
    with open_latents(folder / "samples/latents.h5") as latents:
        assert len(latents) == 24
        assert latents.shape == (16, 4, 4)
        assert np.isfinite(latents.patches(slice(None))).all()
    assert main(["eval"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--decoder" in error


@pytest.mark.slow
def test_the_quickstart(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    types("quickstart --steps 12 --num 40 --device cpu")
    shown = capsys.readouterr().out
    for stage, count in {"encode": 1, "fit-gmm": 1, "train": 2, "sample": 8, "eval": 1, "report": 1}.items():
        assert shown.count(f"\n$ gmtool {stage} ") == count
    assert [path.name for path in folder.iterdir()] == ["quickstart"]
    samples = [f"{run}-{steps}" for run in ("gmflow", "union") for steps in (1, 2, 4, 6)]
    assert {path.name for path in (folder / "quickstart").iterdir()} == {
        *("digits", "latents.h5", "gmm.h5", "gmm.png", "gmflow", "union", "report.html", *samples)
    }
    assert "open quickstart/report.html in a browser" in shown
    assert len(list(Path("quickstart/digits/train").rglob("*.png"))) == 1400
    assert len(list(Path("quickstart/digits/held-out").rglob("*.png"))) == 397
    runs = [open_run(Path("quickstart") / run).manifest for run in ("gmflow", "union")]
    assert [chosen.config["source"] for chosen in runs] == ["gaussian", "gmm"]
    page = Path("quickstart/report.html").read_text("utf-8")
    for name in samples:
        assert Image.open(Path("quickstart") / name / "grid.png").size > (100, 100)
        metrics = json.loads((Path("quickstart") / name / "metrics.json").read_text())
        assert metrics["reference"].endswith("held-out")
        assert repr(metrics["figures"][0]["generated"]["value"]) in page
    assert page.count("real images</figcaption>") == 2  # beside each run
    # run again, it resumes: what exists is not made a second time
    types("quickstart --steps 12 --num 40 --device cpu")
    again = capsys.readouterr()
    assert again.err.count("nothing to do") == 1  # encode
    assert again.err.count("has all its 12 steps") == 2
