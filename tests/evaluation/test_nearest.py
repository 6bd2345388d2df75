"""The picture of the nearest pairs: which they are, and that the right images stand in it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from points import normal

from gmtool.artifacts.latents import Provenance, write_latents
from gmtool.artifacts.manifest import Input
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.cli.app import main
from gmtool.data.image_sets import find_images
from gmtool.evaluation.nearest import nearest_pairs, pick
from gmtool.evaluation.references import open_reference

CPU = torch.device("cpu")


def test_copies_come_first_by_their_distance_in_units_of_the_real_ones() -> None:
    real = normal(30, 4, 0)
    generated = torch.cat([normal(5, 4, 1), real[[7, 3]] + 1e-4])
    pairs = nearest_pairs(generated, real, CPU, pairs=3)
    assert set(pairs.generated[:2].tolist()) == {5, 6} and set(pairs.real[:2].tolist()) == {7, 3}
    distances = torch.cdist(generated.double(), real.double())
    between = torch.cdist(real.double(), real.double()).fill_diagonal_(torch.inf).min(1).values
    ratios = (distances.min(1).values / between[distances.argmin(1)]).sort().values
    torch.testing.assert_close(pairs.ratio, ratios[:3])


@pytest.mark.parametrize("name", ["held_out", "samples", "latents.h5"])
def test_images_are_picked_by_their_rows(name: str, world: Path, digits: np.ndarray) -> None:
    first = {"held_out": 500, "samples": 800, "latents.h5": 0}[name]
    rows = torch.tensor([100, 3, 3, 42])
    np.testing.assert_array_equal(pick(open_reference(world / name), rows, 8), digits[first + rows.numpy()])


def test_latents_without_a_decoder_are_shown_by_their_images(world: Path, tmp_path: Path, digits: np.ndarray) -> None:
    """Each image also flipped: two rows of one name."""
    names = ["0002.png", "0000.png", "0007.png"]
    images = Input("images", str(world / "held_out"), find_images(world / "held_out").fingerprint)
    write_latents(
        tmp_path / "opaque.h5",
        patches=np.zeros((6, 1, 2, 2), np.float32),
        descriptors=np.zeros((6, 4), np.float32),
        labels=np.full(6, -1),
        names=[name for name in names for _ in range(2)],
        classes=(),
        tokenizer=TokenizerSpec("dinov2", {}),
        provenance=Provenance("encode", {}, (images,)),
        flipped=np.arange(6) % 2 == 1,
    )
    picked = pick(open_reference(tmp_path / "opaque.h5"), torch.tensor([4, 1, 2]), 8)
    np.testing.assert_array_equal(picked, digits[[507, 502, 500]])


def test_the_picture_shows_copies_beside_their_originals(world: Path, tmp_path: Path, digits: np.ndarray) -> None:
    np.savez(tmp_path / "copies.npz", digits[[3, 1, 4, 15, 9, 26]])
    arguments = ["eval", str(tmp_path / "copies.npz"), "--reference", str(world / "latents.h5")]
    assert main([*arguments, "--features", "tokenizer", "--nearest", str(tmp_path / "pairs.png")]) == 0
    picture = np.asarray(Image.open(tmp_path / "pairs.png"))
    scale, gap = 4, 2
    tile = 8 * scale + gap
    assert picture.shape == (2 * tile - gap, 8 * tile - gap, 3)
    for row, column in ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)):
        top, left = row * tile, 2 * column * tile
        pair = [picture[top : top + 32, left + step : left + step + 32] for step in (0, tile)]
        np.testing.assert_array_equal(*pair)
        assert any(np.array_equal(pair[0][::scale, ::scale], digits[index]) for index in (3, 1, 4, 15, 9, 26))


def test_nothing_is_replaced(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.png").write_text("mine")
    common = ["eval", str(world / "samples"), "--features", "tokenizer", "--nearest"]
    for given, message in (
        ([str(tmp_path / "mine.png")], "exists"),
        ([str(tmp_path / "x.jpg")], "ends in .png"),
        ([str(tmp_path / "x.png"), str(world / "held_out"), "--reference", str(world / "held_out")], "one set"),
    ):
        assert main([*common, *given]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "mine.png").read_text() == "mine"
