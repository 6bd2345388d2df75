"""What a training run leaves beside its checkpoints: scores, events, and how fast it went."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small import Small

from gmtool.artifacts.latents import LatentsFile, open_latents
from gmtool.cli.app import main
from gmtool.data.fraction import part_of_data
from gmtool.progress import Progress
from gmtool.settings import changed, make
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.online_eval import Scorer
from gmtool.stages.train.run import train

CONFIG = make(
    TrainConfig,
    {
        "steps": 4,
        "batch_size": 8,
        "eval_every": 2,
        "eval_num": 20,
        "preview_every": 0,
        "tensorboard": False,
        "device": "cpu",
        "save_every": 1,
    },
)


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.figures: list[dict] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def advance(self, count: int = 1, figures=None) -> None:
        self.figures.append(dict(figures))


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def scores(run: Path) -> list[dict]:
    return [record for record in records(run) if "frechet_distance" in record]


@pytest.mark.slow
def test_scores_at_intervals(small: Small, tmp_path: Path) -> None:
    heard = Notes()
    train(small.latents("classes"), tmp_path / "run", CONFIG, heard)
    scored = scores(tmp_path / "run")
    assert [score["step"] for score in scored] == [2, 4]
    assert scored[0]["frechet_distance_of_real"] == scored[1]["frechet_distance_of_real"]
    # a network of four steps is far from the digits
    assert all(score["frechet_distance"] > 2 * score["frechet_distance_of_real"] > 0 for score in scored)
    (settings,) = [note for note in heard.notes if note.startswith("settings: ")]
    assert "--batch-size 8 " in settings and "--model tiny " in settings
    assert "--condition class " in settings and any(note.startswith("--condition class: ") for note in heard.notes)
    assert {"loss", "images/s", "waiting"} <= set(heard.figures[-1])
    # going on repeats no score, and finds the same ones
    whole = changed(CONFIG, {"steps": 6})
    train(small.latents("classes"), tmp_path / "run", whole, Progress())
    train(small.latents("classes"), tmp_path / "whole", whole, Progress())
    assert records(tmp_path / "run") == records(tmp_path / "whole")


class Kept:
    def __init__(self) -> None:
        self.records: list[dict] = []

    def write(self, records: list[dict], group: str = "train") -> None:
        self.records += records


class Copies:
    """A generator that gives training images, and a tokenizer whose images are their numbers."""

    def __init__(self, latents: LatentsFile, with_images: bool, rows: Callable[[], np.ndarray]) -> None:
        self._latents, self._with_images, self._rows = latents, with_images, rows

    def draw(self, indices: range) -> torch.Tensor:
        rows = self._rows()[indices]
        return torch.from_numpy(rows if self._with_images else self._latents.patches(rows).astype(np.float32))

    def decode(self, drawn: torch.Tensor) -> torch.Tensor:
        return drawn

    def describe(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self._latents.descriptors(images.numpy()))


@pytest.mark.parametrize("with_images", [True, False], ids=["descriptors", "latents"])
def test_real_images_in_the_place_of_samples_score_as_real_ones(small: Small, with_images: bool) -> None:
    """A generator that gives the very images which stand for the real ones reaches their score."""
    with open_latents(small.latents("classes")) as latents:
        kept = Kept()
        copies = Copies(latents, with_images, lambda: scorer.rows[0])
        tokenizer = copies if with_images else None
        scorer = Scorer(copies.draw, latents, np.arange(60), tokenizer, 20, [kept], seed=3)  # type: ignore[arg-type]
        scorer.score(5)
    (record,) = kept.records
    assert record["step"] == 5
    assert record["frechet_distance"] == pytest.approx(record["frechet_distance_of_real"], rel=1e-6)


def test_the_parts_of_the_real_images_are_apart(small: Small) -> None:
    with open_latents(small.latents("classes")) as latents:

        def scorer(trained: np.ndarray, count: int) -> Scorer:
            return Scorer(lambda _: torch.empty(0), latents, trained, None, count, [], seed=3)

        few, many = (scorer(np.arange(60), count) for count in (4, 1000))
        assert [len(row) for row in few.rows] == [4, 40] and len(set(np.concatenate(few.rows).tolist())) == 44
        assert [len(row) for row in many.rows] == [30, 30]
        together = np.concatenate(many.rows)
        assert sorted(together.tolist()) == list(range(60)) and not np.array_equal(together, np.arange(60))
        part = part_of_data(latents, 0.2, 3)
        assert sorted(np.concatenate(scorer(part, 1000).rows).tolist()) == part.tolist()


@pytest.mark.slow
def test_a_run_on_a_part_is_scored_against_that_part(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    monkeypatch.setattr(Scorer, "score", lambda self, _step: seen.append(sorted(np.concatenate(self.rows).tolist())))
    config = changed(CONFIG, {"fraction": 0.5, "seed": 2, "steps": 2})
    train(small.latents("classes"), tmp_path / "run", config, Progress())
    with open_latents(small.latents("classes")) as latents:
        assert seen == [part_of_data(latents, 0.5, 2).tolist()]


@pytest.mark.slow
def test_events_are_written_where_they_are_asked_for(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", str(small.latents("classes")), str(tmp_path / "run"), "--steps", "2", "--batch-size", "8"]
    arguments += ["--preview-every", "0", "--device", "cpu"]
    assert main([*arguments, "--no-tensorboard"]) == 0
    assert not (tmp_path / "run/tensorboard").exists()
    assert main([*arguments, "--tensorboard", "--steps", "3"]) == 0
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 1
    assert re.search(r"settings: .*--batch-size 8 ", capsys.readouterr().err)
