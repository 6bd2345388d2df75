"""What a training run leaves beside its checkpoints: scores, events, and how fast it went."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from small import Small

from gmtool.artifacts.latents import LatentsFile, open_latents
from gmtool.cli.app import main
from gmtool.progress import Progress
from gmtool.settings import changed, make
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.online_eval import Scorer
from gmtool.stages.train.run import train
from gmtool.training.logging import Logger

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
    return [each for each in records(run) if "frechet_distance" in each]


def scorer_of(latents: LatentsFile, tokenizer: object, count: int, loggers: Sequence[Logger] = ()) -> Scorer:
    """A scorer that has no network to draw from."""
    nothing: Any = None
    return Scorer(nothing, nothing, latents, (0, 1, 2), cast(Any, tokenizer), count, loggers, seed=3)


@pytest.mark.slow
def test_scores_at_intervals(small: Small, tmp_path: Path) -> None:
    heard = Notes()
    train(small.latents("classes"), tmp_path / "run", CONFIG, heard)
    found = scores(tmp_path / "run")
    assert [each["step"] for each in found] == [2, 4]
    assert found[0]["frechet_distance_of_real"] == found[1]["frechet_distance_of_real"]
    # a network of four steps is far from the digits
    assert all(each["frechet_distance"] > 2 * each["frechet_distance_of_real"] > 0 for each in found)
    (settings,) = [each for each in heard.notes if each.startswith("settings: ")]
    assert "--batch-size 8 " in settings and "--model tiny " in settings  # also what was left open
    assert "--condition class " in settings and any(each.startswith("--condition class: ") for each in heard.notes)
    assert {"loss", "images/s", "waiting"} <= set(heard.figures[-1])
    # going on repeats no score, and finds the same ones
    whole = changed(CONFIG, {"steps": 6})
    train(small.latents("classes"), tmp_path / "run", whole, Progress())
    train(small.latents("classes"), tmp_path / "whole", whole, Progress())
    assert records(tmp_path / "run") == records(tmp_path / "whole")


class Assignments:
    def __init__(self) -> None:
        self.records: list[dict] = []

    def write(self, records: list[dict], group: str = "train") -> None:
        self.records += records


@pytest.mark.parametrize("with_images", [True, False], ids=["descriptors", "latents"])
def test_real_images_in_the_place_of_samples_score_as_real_ones(
    small: Small, with_images: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generator that gives the very images which stand for the real ones reaches their score."""

    class Images:
        def decode(self, latents: object) -> object:
            return latents

    with open_latents(small.latents("classes")) as latents:
        kept = Assignments()
        scorer = scorer_of(latents, Images() if with_images else None, 20, [kept])
        monkeypatch.setattr(Scorer, "_draw", lambda self, indices: self._features(self._rows[:20][indices]))
        scorer.score(5)
    (record,) = kept.records
    assert record["step"] == 5
    assert record["frechet_distance"] == pytest.approx(record["frechet_distance_of_real"], rel=1e-6)


def test_the_parts_of_the_real_images_are_apart(small: Small) -> None:
    with open_latents(small.latents("classes")) as latents:
        few, many = (scorer_of(latents, None, count) for count in (4, 1000))
        assert len(few._rows) == 44 and len(set(few._rows.tolist())) == 44
        assert many._size == 30 and sorted(many._rows.tolist()) == list(range(60))
        assert not np.array_equal(many._rows, np.arange(60))


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
