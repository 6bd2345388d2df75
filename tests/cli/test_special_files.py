"""Pipes and links to themselves in the place of files: one line at once, no reading of what never ends."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from golden import DATA
from small import Small

from gmtool.cli.app import main

pytest.importorskip("diffusers")

SECONDS = 60
ENCODER = f"--tokenizer {DATA}/rae_encoder --image-size 32"
JUDGE = f"--perceptual none --features tokenizer {ENCODER}"
OUTPUTS = (
    "encode IMAGES ODD --tokenizer pixels",
    "fit-gmm LATENTS ODD --modes 2",
    "train LATENTS ODD",
    "train-decoder IMAGES ODD --perceptual none --adversarial none --upscale --tokenizer pixels",
    "reconstruct IMAGES ODD --tokenizer pixels",
    "distill RUN ODD",
    "sample RUN ODD",
    "eval IMAGES --reference IMAGES --output ODD",
    "eval IMAGES --reference IMAGES --nearest ODD.png",
    "eval IMAGES --reference IMAGES --write-reference ODD.npz",
    "likelihood LATENTS RUN --output ODD.json",
    "sweep RUN --output ODD",
    "import LATENTS ODD",
    "report RUN ODD.html",
)
INPUTS = (
    "encode ODD out --tokenizer pixels",
    "encode IMAGES out --tokenizer ODD",
    "fit-gmm ODD out",
    "train ODD out",
    "train LATENTS out --gmm ODD --objective mm-fm",
    "train LATENTS out --images ODD",
    f"train-decoder ODD out --perceptual none --adversarial none --upscale {ENCODER}",
    f"train-decoder IMAGES out --validation ODD --perceptual none --adversarial none --upscale {ENCODER}",
    f"train-decoder IMAGES out --perceptual none --upscale {ENCODER} --discriminator-weights ODD",
    f"train-decoder IMAGES out --adversarial none --upscale {ENCODER} --lpips-weights ODD",
    f"train-decoder IMAGES out --perceptual none --adversarial none --upscale {ENCODER} --init ODD",
    "reconstruct ODD out --tokenizer pixels",
    f"reconstruct IMAGES out {JUDGE} --decoder ODD",
    "reconstruct IMAGES out --tokenizer pixels --statistics ODD --perceptual none --features tokenizer",
    "distill ODD out",
    "distill RUN out --latents ODD",
    "distill RUN out --guidance auto --guide ODD",
    "sample ODD out",
    "sample RUN out --gmm ODD",
    "eval ODD --reference IMAGES",
    "eval IMAGES --reference ODD",
    "likelihood ODD RUN",
    "likelihood LATENTS ODD",
    "likelihood LATENTS RUN --gmm ODD",
    "sweep ODD",
    "sweep RUN --reference ODD",
    "import ODD out",
    "import LATENTS out --statistics ODD",
    "inspect ODD",
    "report ODD",
    "train LATENTS out --preset ODD",
)


@pytest.fixture(scope="module")
def run(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("special") / "run"
    words = "--steps 1 --batch-size 4 --model tiny --preview-every 0 --no-tensorboard --device cpu"
    words += " --objective gm-kl --source gmm --components 2"
    assert main(["train", str(small.latents("classes")), str(folder), *words.split()]) == 0
    return folder


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A command that waits for ever is a failure, not a hang."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError("not done in time")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@pytest.mark.parametrize("odd", ["pipe", "loop"])
@pytest.mark.parametrize("words", [*OUTPUTS, *INPUTS])
def test_a_special_file_is_one_line(
    small: Small,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    odd: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for suffix in ("", ".png", ".npz", ".html", ".json"):
        place = tmp_path / f"odd{suffix}"
        if odd == "pipe":
            os.mkfifo(place)
        else:
            place.symlink_to(place.name)
    paths = {"IMAGES": small.classes / "images", "LATENTS": small.latents("classes"), "RUN": run}
    typed = [str(paths.get(word, word.replace("ODD", "odd"))) for word in words.split()]
    assert main(typed) in (1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("gmtool: error: ") and not any("Traceback" in line for line in lines)
    assert "internal error" not in lines[-1]
    assert not (tmp_path / "out").exists()
