"""The example loads a run without gmtool's readers, and draws what gmtool sample draws."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import Small
from user import load_example

import gmtool
from gmtool.artifacts.latents import open_latents
from gmtool.cli.app import main
from gmtool.nn.architecture import Conditions
from gmtool.streams import SampleNoise

EXAMPLE = Path(__file__).parents[2] / "examples" / "load_run.py"


@pytest.fixture(scope="module")
def example():
    return load_example("load_run")


@pytest.mark.slow
@pytest.mark.parametrize(("model", "objective"), [("tiny", "fm"), ("DH-tiny", "gm-kl")])
def test_it_draws_what_gmtool_draws(
    example, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, objective: str
) -> None:
    monkeypatch.chdir(tmp_path)
    train = ["train", str(small.latents("classes")), "--condition", "class", "--steps", "2", "--lr", "0.01"]
    assert main([*train, "--model", model, "--objective", objective, "--preview-every", "0", "--device", "cpu"]) == 0
    draw = ["sample", "--solver", "euler", "--steps", "3", "--num", "4", "--classes", "2", "--device", "cpu"]
    assert main(draw) == 0
    run = tmp_path / "run"
    network = example.load_network(run)
    noise = SampleNoise(0, range(4)).normal(network.architecture.shape)
    shift = example.load_record(run)["config"]["time_shift"]
    x = example.euler(network, noise, Conditions(torch.full((4,), 2)), 3, shift)
    with open_latents(tmp_path / "samples/latents.h5") as latents:
        drawn = torch.from_numpy(latents.patches(slice(None))).float()
    torch.testing.assert_close(example.restore(run, x), drawn, atol=2e-3, rtol=1e-3)  # float16 in the file
    last = example.load_network(run, "model.safetensors")
    assert not torch.equal(next(last.parameters()), next(network.parameters()))


@pytest.mark.slow
def test_the_command_reads_three_files_and_no_more_of_gmtool(small: Small, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train = ["train", str(small.latents("classes")), str(run), "--objective", "fm", "--condition", "class"]
    assert main([*train, "--steps", "2", "--preview-every", "0", "--device", "cpu"]) == 0
    kept = {"config.json", "statistics.safetensors", "ema.safetensors"}
    for path in run.rglob("*"):
        if path.is_file() and path.name not in kept:
            path.unlink()
    code = (
        "import runpy, sys; sys.argv[0] = 'load_run'; "
        f"runpy.run_path({str(EXAMPLE)!r}, run_name='__main__'); "
        "assert not [name for name in sys.modules if name.startswith(('gmtool.artifacts', 'gmtool.stages', 'h5py'))]"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run), "--class", "1", "--count", "2", "--steps", "2", "--out", "out.st"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(gmtool.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "2 latents of (16, 2, 2)" in done.stdout
    assert load_file(tmp_path / "out.st")["latents"].shape == (2, 16, 2, 2)
