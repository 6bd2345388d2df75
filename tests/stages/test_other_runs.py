"""eval, sweep and report on runs that `gmtool train` did not make: a student, and imported weights."""

import json
import shutil
from pathlib import Path

import golden
import pytest
import torch
from safetensors.torch import load_file
from small import Small

from gmtool.cli.app import main
from gmtool.evaluation.sweep_table import read_sweep

CPU = ["--device", "cpu"]
SCORING = ["--features", "tokenizer", *CPU]
FEW = ["--num", "12", *SCORING]


@pytest.fixture
def student(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder with ``run`` and ``student``, of two evaluations."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small.classes, tmp_path, dirs_exist_ok=True)
    training = ["--components", "4", "--steps", "2", "--batch-size", "8", "--preview-every", "0", *CPU]
    assert main(["train", "latents.h5", "run", "--objective", "gm-kl", *training]) == 0
    assert main(["distill", "run", "student", "--evaluations", "2", *training]) == 0
    return tmp_path


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder with ``run``, a DiTDH of RAE's trainer, and ``decoder`` of its encoder."""
    diffusers = pytest.importorskip("diffusers")
    import transformers

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    encoder = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14, "image_size": 56}
    transformers.Dinov2Model(transformers.Dinov2Config(**encoder)).save_pretrained("dino")
    sizes = {"encoder_hidden_size": 16, "decoder_hidden_size": 8, "decoder_intermediate_size": 16}
    layers = {"encoder_num_hidden_layers": 0, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    diffusers.AutoencoderRAE(**sizes, **layers, patch_size=16, encoder_input_size=56).save_pretrained("decoder")
    shape = (16, 4, 4)
    torch.save({"mean": torch.zeros(shape), "var": torch.ones(shape)}, "stat.pt")
    torch.save(load_file(golden.DATA / "ditdh.safetensors"), "model.pt")
    assert main(["import", "model.pt", "--tokenizer", "dino"]) == 0
    return tmp_path


def values(path: Path) -> dict[str, float]:
    return {figure["metric"]: figure["generated"]["value"] for figure in json.loads(path.read_text())["figures"]}


@pytest.mark.slow
def test_a_student(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "student", "samples", "--num", "12", *CPU]) == 0
    assert main(["eval", "samples", *SCORING]) == 0
    assert main(["sweep", "student", "alone", "--temperature", "0.5,1", *FEW]) == 0
    assert main(["sweep", "run", "student", "both", "--steps", "1,2", *FEW]) == 0
    shown = capsys.readouterr().out
    assert "skipped 1 point: --steps 1: this student was made for 2" in shown and "alone: 2 points" in shown
    points = {(point.run, point.evaluations): point for point in read_sweep(student / "both").points}
    assert set(points) == {("run", 1), ("run", 2), ("student", 2)}
    drawn = values(student / "samples/metrics.json")
    for point in (points["student", 2], read_sweep(student / "alone").points[1]):  # of temperature 1
        assert {figure.metric: figure.generated.value for figure in point.figures} == drawn
    assert main(["report", ".", "page.html"]) == 0
    page = (student / "page.html").read_text("utf-8")
    assert "gmtool distill run student" in page and 'data-name="samples"' in page
    for command in (["likelihood", "latents.h5", "student"], ["eval", "samples", "--trajectories", "2", *SCORING]):
        assert main(command) == 2
        assert "student, which has no velocity at every time" in capsys.readouterr().err


@pytest.mark.slow
def test_an_imported_run(imported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawing = ["--protocol", "rae", "--decoder", "decoder", "--num", "12", *CPU]
    for folder, seed in (("samples", "0"), ("others", "1")):
        assert main(["sample", "run", folder, "--steps", "3", "--seed", seed, *drawing]) == 0
    assert main(["eval", "samples", *SCORING]) == 2
    assert "give real images with --reference" in capsys.readouterr().err
    reference = ["--reference", "others"]
    assert main(["eval", "samples", *reference, *SCORING]) == 0
    grid = ["--steps", "2,3", "--guidance", "none,cfg", "--guidance-scale", "1.5", "--features", "tokenizer"]
    assert main(["sweep", "run", "sweep", *grid, *reference, *drawing]) == 0
    points = read_sweep(imported / "sweep").points
    assert [(point.settings["guidance"], point.settings["steps"], point.evaluations) for point in points] == [
        *(("none", 2, 1), ("none", 3, 2)),
        *(("cfg", 2, 2), ("cfg", 3, 4)),
    ]
    swept = {figure.metric: figure.generated.value for figure in points[1].figures}
    assert swept == values(imported / "samples/metrics.json")
    assert main(["report", ".", "page.html"]) == 0
    page = (imported / "page.html").read_text("utf-8")
    assert "gmtool import" in page and page.count('data-name="point') == 4
