import os
from pathlib import Path

import numpy as np
import pytest

from gmtool.artifacts.gmm import open_gmm
from gmtool.artifacts.latents import Provenance, write_latents
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.cli.app import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a small latents.h5 in it."""
    rng = np.random.default_rng(0)
    write_latents(
        tmp_path / "latents.h5",
        patches=rng.normal(size=(80, 2, 4, 4)),
        descriptors=rng.normal(size=(80, 5)).astype(np.float32),
        labels=np.zeros(80, np.int64),
        names=[f"{index:02d}.png" for index in range(80)],
        classes=["all"],
        tokenizer=TokenizerSpec("pixels", {}),
        provenance=Provenance("encode", {}),
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_defaults_and_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit-gmm", "--modes", "4"]) == 0
    shown = capsys.readouterr().out
    for words in ("4 of 4", "median", "76 fitted images, nats per dimension", "4 held-out images", "EM iterations"):
        assert words in shown
    with open_gmm(folder / "gmm.h5") as gmm:
        assert len(gmm) == 4
        assert gmm.manifest.config["modes"] == 4
    assert main(["fit-gmm", "--modes", "4"]) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.slow
def test_the_next_command_trains_on_the_same_part(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit-gmm", "--modes", "2", "--fraction", "0.5", "--seed", "3"]) == 0
    following = capsys.readouterr().out.splitlines()[-1].removeprefix("next: gmtool ")
    assert following == "train latents.h5 --objective mm-fm --gmm gmm.h5 --fraction 0.5 --seed 3"
    assert main([*following.split(), "--dry-run"]) == 0


def test_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit-gmm", "--modes", "3", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "76 of 80" in shown
    assert "KiB" in shown
    assert [path.name for path in folder.iterdir()] == ["latents.h5"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.h5"], ["none.h5 does not exist", "gmtool encode"]),
        (["text.h5"], ["text.h5", "gmtool encode"]),
        (["half.h5"], ["half.h5", "gmtool encode"]),
        (["mixture.h5"], ["mixture.h5 is a fitted mixture, not a latents file", "gmtool encode"]),
        (["."], ["is a folder", "gmtool encode"]),
        (["latents.h5", "latents.h5"], ["latents.h5 is a latents file and would be overwritten"]),
        (["latents.h5", "inside"], ["inside", "is a folder"]),
        (["latents.h5", "text.h5/gmm.h5"], ["text.h5 is not a folder"]),
        (["--modes", "77"], ["--modes 77", "76 images", "80", "--held-out"]),
        (["--modes", "81", "--held-out", "0"], ["--modes 81", "80 images"]),
        (["--modes", "0"], ["--modes must be at least 1"]),
        (["--held-out", "1"], ["--held-out must be below 1"]),
        (["--assignment", "firm"], ["--assignment"]),
        (["--device", "gpu"], ["--device must be"]),
        (["--clusters", "3"], ["--clusters", "fit-gmm --help"]),
    ],
)
def test_failures_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    assert main(["fit-gmm", "latents.h5", "mixture.h5", "--modes", "2"]) == 0
    (folder / "text.h5").write_text("not latents")
    (folder / "half.h5").write_bytes((folder / "latents.h5").read_bytes()[:4000])
    (folder / "inside").mkdir()
    before = sorted(folder.rglob("*"))
    capsys.readouterr()
    assert main(["fit-gmm", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("gmtool: error: ")
    for word in words:
        assert word in shown.err
    assert sorted(folder.rglob("*")) == before


def test_a_read_only_folder(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    assert main(["fit-gmm", "--modes", "2"]) == 2
    assert "is read-only; choose another output" in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_disk(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", full)
        assert main(["fit-gmm", "--modes", "2"]) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == [".gmm.h5.gmtool", "latents.h5"]
    assert main(["fit-gmm", "--modes", "2"]) == 0
    assert "resuming after" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["gmm.h5", "gmm.png", "latents.h5"]
