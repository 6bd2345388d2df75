"""The example's own arithmetic, and a run of it in miniature."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from user import load_example

from gmtool.streams import generator


@pytest.fixture(scope="module")
def board():
    load_example("point_flows")
    return load_example("checkerboard")


@pytest.fixture
def tiny(board):
    return board.Setting(width=32, depth=2, steps=1, batch=256, rate=5e-3, samples=500, final=600)


def test_data_fill_the_white_squares_evenly(board):
    drawn = board.draw_data(40_000, generator("test"))
    assert board.histogram(drawn)[board.WHITE].sum() == pytest.approx(1)
    square = np.floor((drawn.flatten(1).numpy() + 4) / 2).astype(int)
    counts = np.bincount(square[:, 0] * 4 + square[:, 1], minlength=16).reshape(4, 4)
    white = np.add.outer(range(4), range(4)) % 2 == 0
    assert (counts[~white] == 0).all()
    np.testing.assert_allclose(counts[white], 5000, rtol=0.1)


def test_total_variation_of_known_samples(board):
    """0 for the truth itself, 1 for samples elsewhere, 1/2 for the whole board evenly or half of the squares."""
    truth = board.TRUTH
    assert truth.sum() == pytest.approx(1) and board.total_variation(truth) == pytest.approx(0)
    assert board.total_variation(np.zeros_like(truth)) == 1
    assert board.total_variation(np.full_like(truth, 1 / truth.size)) == pytest.approx(0.5)
    half = truth.copy()
    half[: len(half) // 2] = 0
    assert board.total_variation(2 * half) == pytest.approx(0.5)


def test_histogram_counts_by_place_and_drops_what_is_outside(board):
    shares = board.histogram(torch.tensor([[-3.99, 3.99], [-3.99, 3.99], [0.01, 0.01], [5.0, 0.0]]))
    assert shares[0, -1] == 0.5 and shares[100, 100] == 0.25 and shares.sum() == 0.75


@pytest.mark.slow
def test_the_example_writes_its_tables_and_pictures(board, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(board, "SETTINGS", {"cpu": tiny})
    monkeypatch.setattr(board, "EVALUATIONS", (1, 3))
    fm, many = board.MODELS["flow matching"], board.MODELS["K = 64"]
    monkeypatch.setattr(board, "MODELS", {"flow matching": fm, "K = 64": (many[0], 2)})
    monkeypatch.setattr(sys, "argv", ["checkerboard.py", str(tmp_path), "--device", "cpu"])
    board.main()
    said = capsys.readouterr().out
    assert "a true sample: 100.0 " in said
    assert said.count("unipc") == 2 and said.count("│ gm-sde 2 ") == 1
    assert "600 samples" in said and "flow matching, heun 2, 64 evaluations" in said
    with Image.open(tmp_path / "K = 64.png") as picture:
        assert picture.size == (2 * 202, 11 * 202)
    assert {path.name for path in tmp_path.iterdir()} == {"flow matching.png", "K = 64.png"}


@pytest.mark.parametrize(("name", "components"), [("flow matching", 0), ("K = 8", 4)])
def test_training_lowers_the_loss(board, tiny, name, components):
    method, _ = board.MODELS[name]

    def loss(steps):
        network = board.train(method, components, replace(tiny, steps=steps), 0, torch.device("cpu"))
        return board.losses(network, method, 4096, generator("test")).mean().item()

    assert loss(80) < loss(2) - 0.1


def test_draws_do_not_depend_on_the_solver_before_them(board):
    network = board.PointNetwork(2, 16, 2, 2)
    first, again = (board.draw(network, "gm-sde", 2, 2, 50, torch.device("cpu")) for _ in range(2))
    assert torch.equal(first, again)
