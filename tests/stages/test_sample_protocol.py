"""sample --protocol rae as a user asks for it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small import Small

from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.samples import open_samples
from gmtool.cli.app import main
from gmtool.tokenizers.build import build_tokenizer


@pytest.mark.slow
def test_the_grid_counts_points_and_images_are_truncated(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train = ["train", str(small.latents("flat")), "--objective", "fm", "--condition", "none", "--steps", "2"]
    assert main([*train, "--preview-every", "0", "--device", "cpu"]) == 0
    rae_flags = ["--protocol", "rae", "--steps", "3"]
    for name, flags in {"rae": rae_flags, "heun": [*rae_flags, "--solver", "heun"], "full": ["--steps", "2"]}.items():
        assert main(["sample", "run", name, "--num", "4", "--device", "cpu", *flags]) == 0
    for name, solver in {"rae": "euler", "heun": "heun"}.items():
        plan = json.loads((tmp_path / name / "sampling.json").read_text())["details"]["plan"]
        assert (plan["solver"], plan["protocol"], plan["steps"]) == (solver, "rae", 2)
    with open_latents(tmp_path / "rae/latents.h5") as rae, open_latents(tmp_path / "full/latents.h5") as full:
        latents = torch.from_numpy(rae.patches(slice(None)))
        assert not torch.equal(latents, torch.from_numpy(full.patches(slice(None))))  # it stops before t = 0
        tokenizer = build_tokenizer(rae.tokenizer, torch.device("cpu"))
    images = open_samples(tmp_path / "rae").images()
    truncated = tokenizer.decode(latents, truncate=True).permute(0, 2, 3, 1).numpy()
    rounded = tokenizer.decode(latents).permute(0, 2, 3, 1).numpy()
    assert (images == truncated).mean() > 0.95 > (images == rounded).mean()  # float16 in the file
    assert np.abs(images.astype(int) - truncated).max() <= 1
    capsys.readouterr()
    for flags, words in {
        ("--order", "1"): "not to --solver euler",
        ("--steps", "1"): "at least --steps 2",
        ("--guidance", "prob"): "needs a mixture head",
    }.items():
        assert main(["sample", "run", "x", "--protocol", "rae", *flags]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
