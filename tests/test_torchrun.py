"""The stages on two processes leave the same files as on one."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import Small
from user import torchrun

from gmtool.artifacts.latents import open_latents
from gmtool.cli.app import execute

pytestmark = pytest.mark.slow

CHAIN = """
import sys
from gmtool.cli import app
from gmtool.errors import GmtoolError
from stages import REFUSED, STAGES

def chain(_arguments):
    for arguments in STAGES:
        execute(arguments)
    for arguments in REFUSED:
        try:
            execute(arguments)
        except GmtoolError as error:
            print("refused:", error)
    return 0

execute, app.execute = app.execute, chain  # which runs in the group that main makes
app.run()
"""


def commands(*lines: str) -> list[list[str]]:
    return [[*line.split(), "--device", "cpu"] for line in lines]


ENCODE = "encode images latents.h5 --tokenizer pixels --patch-size 4 --batch-size 8 --flip both --skip-bad --workers 0"
FIT = "fit-gmm latents.h5 gmm.h5 --modes 5 --em-iterations 5"
TRAIN = "train latents.h5 {} --steps 4 --save-every 2 --batch-size 8 --preview-every 4"
MIXTURE = f"{TRAIN} --objective gm-kl --spectral 2"
OPTIMAL = f"{TRAIN} --coupling batch-ot --micro-batch 2"
SAMPLE = "sample given samples --steps 2 --num 20 --batch-size 6 --guidance prob"
EVAL = "eval samples --reference real --features tokenizer --batch-size 8"


@dataclass(frozen=True)
class Chains:
    """Folders in which the same commands ran on one process and on two, and the output of the two."""

    one: Path
    two: Path
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def chains(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Chains:
    root = tmp_path_factory.mktemp("images")
    shutil.copytree(small.classes / "images", root / "images")
    (root / "images" / "a" / "broken.png").write_bytes(b"no image")
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    for folder in (one, two):
        (folder / "images").symlink_to(root / "images")
        (folder / "real").symlink_to(small.classes / "images")
    run_here(one, commands(ENCODE, FIT, MIXTURE.format("given"), OPTIMAL.format("optimal"), SAMPLE, EVAL))
    shutil.copytree(one / "given", two / "given")
    copy_half(one / "given", two / "resumed")
    stages = [ENCODE, FIT, MIXTURE.format("run"), OPTIMAL.format("optimal") + " --shard"]
    stages += [MIXTURE.format("resumed") + " --shard", SAMPLE, EVAL]
    refused = [TRAIN.format("none").replace("-size 8", "-size 9"), TRAIN.format("other") + " --micro-batch 8"]
    (two / "chain.py").write_text(CHAIN)
    (two / "stages.py").write_text(f"STAGES, REFUSED = {commands(*stages)!r}, {commands(*refused)!r}")
    done = torchrun(["chain.py"], two)
    assert done.returncode == 0, done.stderr
    return Chains(one, two, done.stdout, done.stderr)


def run_here(folder: Path, stages: list[list[str]]) -> None:
    """Run commands in a folder, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for arguments in stages:
            assert execute(arguments) == 0


def copy_half(run: Path, target: Path) -> None:
    """A run as it was after 2 of its 4 steps."""
    shutil.copytree(run, target)
    shutil.rmtree(target / "checkpoints" / "step-00000004")


def expect_same_training(one: Path, two: Path) -> None:
    """The same loss curve to 1e-5, and the same checkpoint to the rounding of four steps."""
    first, second = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, two)
    )
    assert [record["step"] for record in second] == [1, 2, 3, 4]
    for here, there in zip(first, second, strict=True):
        assert there == pytest.approx(here, rel=1e-5, abs=1e-5)
    for name in ("model", "ema", "optimizer"):
        here, there = (load_file(run / f"checkpoints/step-00000004/{name}.safetensors") for run in (one, two))
        assert here.keys() == there.keys()
        for key, values in here.items():
            torch.testing.assert_close(there[key], values, rtol=1e-4, atol=2e-6, msg=lambda text, key=key: key + text)


def test_latents_are_identical(chains: Chains) -> None:
    with open_latents(chains.one / "latents.h5") as one, open_latents(chains.two / "latents.h5") as two:
        assert len(one) == 120  # a round is 16 of 61 images, each with its mirror image, one of them bad
        assert one.manifest == two.manifest
        every = slice(None)
        assert np.array_equal(one.patches(every), two.patches(every))
        assert np.array_equal(one.descriptors(every), two.descriptors(every))
        assert one.names() == two.names() and np.array_equal(one.labels, two.labels)


def test_mixtures_are_the_same(chains: Chains) -> None:
    """To the rounding of sums over the images of two processes."""
    with h5py.File(chains.one / "gmm.h5") as one, h5py.File(chains.two / "gmm.h5") as two:
        arrays: dict[str, np.ndarray] = {}
        one.visititems(
            lambda name, stored: arrays.update({name: stored[...]} if isinstance(stored, h5py.Dataset) else {})
        )
        assert len(arrays) > 6
        for name, values in arrays.items():
            np.testing.assert_allclose(two[name][...], values, rtol=1e-5, atol=1e-6, err_msg=name)


def test_training_is_the_same_whole_or_in_shards(chains: Chains) -> None:
    expect_same_training(chains.one / "given", chains.two / "run")
    expect_same_training(chains.one / "optimal", chains.two / "optimal")
    assert (chains.two / "run" / "previews" / "step-00000004.png").is_file()


def test_a_run_resumes_with_another_number_of_processes(chains: Chains, tmp_path: Path) -> None:
    expect_same_training(chains.one / "given", chains.two / "resumed")
    copy_half(chains.two / "optimal", tmp_path / "optimal")
    shutil.copy(chains.one / "latents.h5", tmp_path)
    run_here(tmp_path, commands(OPTIMAL.format("optimal")))
    expect_same_training(chains.one / "optimal", tmp_path / "optimal")


def test_what_cannot_be_divided_is_refused(chains: Chains) -> None:
    refused = [line for line in chains.stdout.splitlines() if line.startswith("refused: ")]
    assert refused == [
        "refused: --batch-size 9 is not divisible by 2 processes; use 8",
        "refused: --micro-batch 8 does not divide the 4 images of a step: use 4",
    ]
    assert not (chains.two / "none").exists()


def test_samples_are_identical(chains: Chains) -> None:
    one, two = (folder / "samples" for folder in (chains.one, chains.two))
    assert sorted(path.relative_to(one) for path in one.rglob("*")) == sorted(
        path.relative_to(two) for path in two.rglob("*")
    )
    for name in ("samples.npz", "grid.png", *(f"images/{index:06d}.png" for index in range(20))):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    with h5py.File(one / "latents.h5") as first, h5py.File(two / "latents.h5") as second:
        assert np.array_equal(first["patches"][...], second["patches"][...])


def test_scores_are_those_of_all_images(chains: Chains) -> None:
    one, two = (json.loads((folder / "samples" / "metrics.json").read_text()) for folder in (chains.one, chains.two))
    for first, second in zip(one["figures"], two["figures"], strict=True):
        assert second["generated"]["images"] == 20 and second["generated"] == pytest.approx(first["generated"])
        assert second["real"] == pytest.approx(first["real"])


def test_the_first_process_alone_speaks(chains: Chains) -> None:
    assert chains.stdout.count("next: gmtool fit-gmm") == chains.stdout.count("broken.png") == 1
    assert chains.stdout.count("20 samples of step 4") == chains.stdout.count("Fréchet distance") == 1
    assert chains.stdout.count("run: 4 steps") == chains.stderr.count("resuming resumed at step 2") == 1
    assert chains.stderr.count("encoding: 61/61 images") == chains.stderr.count("sample: 20/20 images") == 1
