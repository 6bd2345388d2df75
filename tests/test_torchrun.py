"""The stages on two processes leave the same files as on one."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from small import Small
from user import torchrun

from gmtool.artifacts.latents import MANIFEST
from gmtool.cli.app import execute

CHAIN = """
import sys
from gmtool.cli import app
from stages import STAGES

def chain(_arguments):
    return next(filter(None, map(execute, STAGES)), 0)

execute, app.execute = app.execute, chain
sys.exit(app.main([]))
"""

STAGES = [
    [*line.split(), "--device", "cpu"]
    for line in (
        "encode images latents.h5 --tokenizer pixels --patch-size 4 --batch-size 8 --flip both --skip-bad --workers 0",
        "train latents.h5 run --objective gm-kl --steps 4 --save-every 3 --batch-size 8",
        "sample run samples --steps 2 --num 20 --batch-size 6 --guidance prob",
        "eval samples --reference real --features tokenizer --batch-size 8",
    )
]


@dataclass(frozen=True)
class Chains:
    """Folders in which the same commands ran, on one process and on two, and what the two said."""

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
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(one)
        for arguments in STAGES:
            assert execute(arguments) == 0
    shutil.copytree(one / "run", two / "run")
    (two / "chain.py").write_text(CHAIN)
    (two / "stages.py").write_text(f"STAGES = {[STAGES[0], *STAGES[2:]]!r}")
    done = torchrun(["chain.py"], two)
    assert done.returncode == 0, done.stderr
    return Chains(one, two, done.stdout, done.stderr)


def test_latents_are_identical(chains: Chains) -> None:
    with h5py.File(chains.one / "latents.h5") as one, h5py.File(chains.two / "latents.h5") as two:
        assert len(one["patches"]) == 120  # a round is 16 of 61 images, each with its mirror image, one of them bad
        for name in ("patches", "cls", "labels", "names", "flipped", "mean", "var", "tokenizer/components"):
            assert np.array_equal(one[name][...], two[name][...]), name
        assert one.attrs[MANIFEST] == two.attrs[MANIFEST]


def test_samples_are_identical(chains: Chains) -> None:
    one, two = (folder / "samples" for folder in (chains.one, chains.two))
    assert sorted(each.relative_to(one) for each in one.rglob("*")) == sorted(
        each.relative_to(two) for each in two.rglob("*")
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
    assert chains.stderr.count("encoding: 61/61 images") == chains.stderr.count("sample: 20/20 images") == 1
