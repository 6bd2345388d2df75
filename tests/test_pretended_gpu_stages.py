"""Every command that uses a device, on a pretended GPU: tensors of two devices never meet, no step waits for it, and
the numbers are the CPU's. See `pretend_cuda`.
"""

import errno
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import DATA
from PIL import Image
from pretend_cuda import pretend_cuda
from small import Small

from gmtool.artifacts.gmm import open_gmm
from gmtool.artifacts.latents import open_latents
from gmtool.cli.app import execute, main
from gmtool.evaluation.metrics import flow_paths
from gmtool.runtime import allow_tf32
from gmtool.training import loop, throughput
from gmtool.training.checkpoint import Position

# imported here: they ask for CUDA's libraries while they are, which the pretence has none of
pytest.importorskip("diffusers").AutoencoderRAE  # noqa: B018
pytest.importorskip("transformers").ViTModel  # noqa: B018

pytestmark = pytest.mark.slow

STEPS = 4
TRAIN = f"train LATENTS OUT --steps {STEPS} --batch-size 8 --save-every 4 --preview-every 0 --no-tensorboard --warmup 1"
MIXTURE = "--objective gm-kl --components 2"
RUNS = {
    "fm": "--model tiny",
    "mm-fm": "--model tiny --objective mm-fm",
    "gm-kl": f"--model tiny {MIXTURE}",
    "spectral": f"--model DH-tiny {MIXTURE} --spectral 2",
    "union": f"--model tiny {MIXTURE} --source gmm",
    "mode means": "--model tiny --condition mode --mode-mean",
    "batch-ot, focal": "--model tiny --coupling batch-ot --condition mode --focal 2",
    "muon, averages": "--model tiny --optimizer muon --ema 0.9 --ema 0.99 --ema-power 0.1",
    "micro-batches": "--model tiny --checkpoint-activations --precision float32 --micro-batch 2",
    "images": "--model tiny --images IMAGES --flip --workers 0",
    "images, mm-fm": "--model tiny --images IMAGES --objective mm-fm --workers 0",
}
SOLVERS = ("euler", "heun", "ddim", "ddpm-small", "ddpm-large", "dpmpp-2m", "dpmpp-2m-sde", "unipc", "gm-ode", "gm-sde")
GUIDANCE = {
    "cfg": "--guidance cfg --guidance-scale 2 --solver euler",
    "prob": "--guidance prob --guidance-scale 0.2",
    "prob-weights": "--guidance prob-weights --guidance-scale 2",
    "auto": "--guidance auto --guide RUN --guidance-scale 0.3",
    "spectral": "--solver gm-sde --spectral",
}


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    monkeypatch.setattr(throughput, "matmul_rate", lambda *_: 1e12)
    with pretend_cuda() as counted:
        yield counted


@pytest.fixture(scope="module")
def runs(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a mixture with a spectrum, and a student of it, made on the CPU."""
    root = tmp_path_factory.mktemp("runs")
    run_gmtool(f"{TRAIN} {RUNS['spectral']} --device cpu", latents=small.latents("classes"), out=root / "run")
    run_gmtool(
        "distill RUN OUT --steps 2 --batch-size 8 --evaluations 2 --preview-every 0 --no-tensorboard --device cpu",
        run=root / "run",
        out=root / "student",
    )
    return root


def run_gmtool(words: str, **paths: Path | str) -> None:
    """A command as it is typed; words in capitals stand for paths."""
    assert execute([str(paths[word.lower()]) if word.isupper() else word for word in words.split()]) == 0


def losses(folder: Path) -> list[float]:
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture
def in_each_step(waits: Counter[str], monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The lines that waited between the start of a run's steps and the reading of their figures, which waits itself.

    But for optimal transport, whose assignment is found on the host.
    """
    lines, start, read = Counter[str](), loop.finishing_the_step, loop.Loop._report

    def starting() -> AbstractContextManager[Callable[[], bool]]:
        waits.clear()
        return start()

    def reading(self: loop.Loop, pending: Sequence[loop.StepResult], at: Position) -> Position:
        assert len(pending) == (STEPS if pending[0].loss.is_cuda else 1)
        seen = {line: count for line, count in waits.items() if count >= STEPS}
        lines.update({line: count for line, count in seen.items() if "flow/coupling.py" not in line})
        return read(self, pending, at)

    monkeypatch.setattr(loop, "finishing_the_step", starting)
    monkeypatch.setattr(loop.Loop, "_report", lambda self, pending, at: reading(self, pending, at))
    return lines


def test_encoding_and_fitting(small: Small, tmp_path: Path) -> None:
    for device in ("cuda", "cpu"):
        here = {"latents": tmp_path / f"{device}.h5", "images": small.classes / "images"}
        encode = "encode IMAGES LATENTS --tokenizer pixels --patch-size 4 --workers 0 --flip both"
        run_gmtool(f"{encode} --device {device}", **here)
        for assignment in ("soft", "hard"):
            fit = f"fit-gmm LATENTS OUT --modes 4 --em-iterations 5 --assignment {assignment} --device {device}"
            run_gmtool(fit, **here, out=tmp_path / f"{assignment}-{device}.h5")
    with open_latents(tmp_path / "cuda.h5") as one, open_latents(tmp_path / "cpu.h5") as two:
        assert np.array_equal(one.patches(np.arange(len(one))), two.patches(np.arange(len(two))))
    for assignment in ("soft", "hard"):
        with open_gmm(tmp_path / f"{assignment}-cuda.h5") as one, open_gmm(tmp_path / f"{assignment}-cpu.h5") as two:
            np.testing.assert_allclose(one.weights, two.weights, rtol=1e-6)
            np.testing.assert_allclose(one.patch_mean(np.arange(4)), two.patch_mean(np.arange(4)), atol=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_training_waits_for_nothing_between_two_reports(
    small: Small, tmp_path: Path, in_each_step: Counter[str], name: str
) -> None:
    here = {"latents": small.latents("classes"), "images": small.classes / "images", "out": tmp_path / "run"}
    run_gmtool(f"{TRAIN} {RUNS[name]} --device cuda", **here)
    assert len(losses(tmp_path / "run")) == STEPS and np.isfinite(losses(tmp_path / "run")).all()
    assert not in_each_step


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        ("encode IMAGES LATENTS --tokenizer pixels --workers 0", False),
        (f"{TRAIN} {RUNS['fm']}", False),
        (f"{TRAIN} {RUNS['fm']} --tf32", True),
        ("sample RUN OUT --num 2 --steps 1", False),
        ("eval SAMPLES --features tokenizer", False),
    ],
    ids=["encode", "train", "train --tf32", "sample", "eval"],
)
def test_tf32_is_on_where_it_was_asked_for(small: Small, runs: Path, tmp_path: Path, words: str, allowed: bool) -> None:
    """In training alone, whatever was allowed before."""
    if words.startswith("eval"):
        run_gmtool("sample RUN OUT --num 4 --steps 1 --device cpu", run=runs / "run", out=tmp_path / "samples")
    latents = small.latents("classes") if words.startswith("train") else tmp_path / "latents.h5"
    here = {"images": small.classes / "images", "latents": latents, "run": runs / "run"}
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        allow_tf32(not allowed)
        run_gmtool(f"{words} --device cuda", **here, samples=tmp_path / "samples", out=tmp_path / "out")
        assert [backend.allow_tf32 for backend in backends] == [allowed, allowed]
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def test_a_small_dev_shm_is_one_line(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", no_space)
    images, latents = str(small.classes / "images"), str(small.latents("classes"))
    train = ["train", latents, str(tmp_path / "run"), "--images", images, *RUNS["fm"].split()]
    for command in (["encode", images, str(tmp_path / "new.h5"), "--tokenizer", "pixels"], train):
        assert main([*command, "--workers", "2", "--device", "cuda"]) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert "processes that decode images cannot start (No space left on device): use fewer --workers" in line
        assert "/dev/shm" in line


@pytest.mark.parametrize("solver", SOLVERS)
def test_samples_are_the_bytes_of_the_cpu(runs: Path, tmp_path: Path, solver: str) -> None:
    for device in ("cuda", "cpu"):
        words = f"sample RUN OUT --num 4 --batch-size 3 --steps 2 --solver {solver} --precision float32"
        run_gmtool(f"{words} --device {device}", run=runs / "run", out=tmp_path / device)
    assert (tmp_path / "cuda/samples.npz").read_bytes() == (tmp_path / "cpu/samples.npz").read_bytes()


@pytest.mark.parametrize("name", GUIDANCE)
def test_guidance(runs: Path, tmp_path: Path, name: str) -> None:
    run_gmtool(
        f"sample RUN OUT --num 3 --steps 2 --device cuda {GUIDANCE[name]}", run=runs / "run", out=tmp_path / "samples"
    )


@pytest.mark.parametrize("more", ["", "--temperature 0.5", "--renewal 0.5"])
def test_samples_of_a_student_are_the_bytes_of_the_cpu(runs: Path, tmp_path: Path, more: str) -> None:
    for device in ("cuda", "cpu"):
        words = f"sample RUN OUT --num 4 --batch-size 3 --precision float32 --device {device} {more}"
        run_gmtool(words, run=runs / "student", out=tmp_path / device)
    assert (tmp_path / "cuda/samples.npz").read_bytes() == (tmp_path / "cpu/samples.npz").read_bytes()


STUDENTS = {
    "guided": ("fm", "--evaluations 2 --guidance cfg --guidance-scale 2"),
    "data-free": ("fm", "--data-free --window 4 --teacher-steps 2"),
    "dx": ("fm", "--policy dx --points 3 --teacher-checkpoint 4"),
    "whitened": ("union", "--components 2"),
    "whitened, data-free": ("union", "--data-free --evaluations 2 --teacher-steps 9"),
}
"""The teacher, and the student's flags."""


@pytest.mark.parametrize("name", STUDENTS)
def test_distillation_waits_for_nothing_between_two_reports(
    small: Small, tmp_path: Path, in_each_step: Counter[str], name: str
) -> None:
    teacher, more = STUDENTS[name]
    here = {"latents": small.latents("classes"), "run": tmp_path / "run"}
    run_gmtool(f"{TRAIN} {RUNS[teacher]} --device cpu", **here, out=tmp_path / "run")
    words = f"distill RUN OUT --steps {STEPS} --batch-size 8 --warmup 1 --preview-every 0 --no-tensorboard"
    for device in ("cuda", "cpu"):
        run_gmtool(f"{words} --precision float32 --device {device} {more}", **here, out=tmp_path / device)
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-4)
    assert not in_each_step


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and the ViT of a discriminator."""
    from transformers import ViTConfig, ViTModel

    root = tmp_path_factory.mktemp("pictures")
    (root / "images").mkdir()
    draw = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(root / "images" / f"{number}.png")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTModel(ViTConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(root / "vit")
    return root


def test_a_decoder_is_trained_and_judged(pictures: Path, tmp_path: Path, in_each_step: Counter[str]) -> None:
    here = {"images": pictures / "images", "encoder": DATA / "rae_encoder", "vit": pictures / "vit"}
    words = f"train-decoder IMAGES OUT --tokenizer ENCODER --image-size 32 --perceptual none --steps {STEPS}"
    words += " --discriminator-weights VIT --size tiny --discriminator-from 0 --adversarial-from 0 --batch-size 4"
    words += " --warmup 1 --preview-every 0 --eval-every 0 --workers 0 --no-tensorboard --precision float32"
    for device in ("cuda", "cpu"):
        run_gmtool(f"{words} --device {device}", **here, out=tmp_path / device)
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=0.01)
    assert not in_each_step
    figures = []
    for device in ("cpu", "cuda"):
        judge = "reconstruct IMAGES OUT --decoder DECODER --features tokenizer --perceptual none --workers 0"
        out = tmp_path / f"judged-{device}"
        run_gmtool(f"{judge} --precision float32 --device {device}", **here, decoder=tmp_path / "cpu", out=out)
        figures.append(json.loads((out / "reconstruction.json").read_text())["details"]["qualities"]["psnr"]["mean"])
    assert figures[1] == pytest.approx(figures[0], rel=1e-4)


def test_scores_likelihoods_and_sweeps(
    small: Small, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the Lipschitz constant and the likelihood: forward-mode derivatives need tensors with storage."""
    monkeypatch.setattr(flow_paths, "mean_lipschitz", lambda _field, path, _stream: path.length())
    run_gmtool("sample RUN OUT --num 6 --steps 2 --device cuda", run=runs / "run", out=tmp_path / "samples")
    run_gmtool("eval SAMPLES --features tokenizer --trajectories 4 --device cuda", samples=tmp_path / "samples")
    grid = "--steps 1,2 --num 4 --features tokenizer --device cuda --solver gm-ode,euler"
    run_gmtool(f"sweep RUN OUT {grid}", run=runs / "run", out=tmp_path / "sweep")
