"""The feature cache: the same images are not extracted twice, and damage in it does no harm."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gmtool.cli.app import main
from gmtool.evaluation.cache import FeatureCache, feature_cache, feature_key
from gmtool.evaluation.features import Features
from gmtool.progress import Progress


def features(count: int, seed: int = 0) -> Features:
    random = torch.Generator().manual_seed(seed)
    return Features(torch.randn(count, 4, generator=random), None, torch.randn(count, 3, generator=random))


class Notes(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


def test_what_was_kept_comes_back_and_what_is_damaged_does_not(tmp_path):
    cache, key = FeatureCache(tmp_path / "cache", 10**6), feature_key("inception", "images", 8)
    assert cache.load(key) is None
    cache.save(key, features(5), Progress())
    loaded = cache.load(key)
    assert torch.equal(loaded.vectors, features(5).vectors) and torch.equal(loaded.spatial, features(5).spatial)
    assert loaded.logits is None and cache.load(feature_key("inception", "images", 16)) is None
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    for content in (b"", whole[:-20], whole[:-3] + bytes(3), b"no tensors"):
        file.write_bytes(content)
        assert cache.load(key) is None
    cache.save(key, features(5), Progress())
    assert torch.equal(cache.load(key).vectors, features(5).vectors)


def test_those_not_used_for_longest_make_room(tmp_path):
    cache, keys = FeatureCache(tmp_path, 3000), [feature_key("e", str(index), 8) for index in range(3)]
    (tmp_path / "notes.txt").write_text("mine")
    for age, key in enumerate(keys):
        cache.save(key, features(40), Progress())
        os.utime(tmp_path / f"{key}.safetensors", (1000 + age, 1000 + age))
    assert [cache.load(key) is not None for key in keys] == [False, True, True]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    cache.save(keys[0], features(4000), Progress())  # more than the cache holds
    assert cache.load(keys[0]) is None and cache.load(keys[2]) is not None
    assert FeatureCache(tmp_path, 0).load(keys[2]) is None


def test_where_nothing_can_be_kept_a_note_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    progress = Notes()
    FeatureCache(tmp_path / "file" / "cache", 10**6).save(feature_key("e", "i", 8), features(5), progress)
    assert len(progress.lines) == 1 and "features are not kept" in progress.lines[0]


def test_it_lies_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("GMTOOL_CACHE", str(tmp_path / "own"))
    assert feature_cache(2).folder == tmp_path / "own" / "features" and feature_cache(2).size == 2**31
    monkeypatch.delenv("GMTOOL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert feature_cache(1).folder == tmp_path / "xdg" / "gmtool" / "features"


@pytest.fixture
def arguments(world, tmp_path, digits) -> list[str]:
    np.savez(tmp_path / "a.npz", digits[900:960])
    (tmp_path / "real").mkdir()
    for index, image in enumerate(digits[:70]):
        Image.fromarray(image).save(tmp_path / "real" / f"{index}.png")
    tokenizer = ["--features", "tokenizer"]
    return ["eval", str(world / "samples"), *tokenizer, "--reference", str(tmp_path / "real"), "--json"]


def evaluated(arguments: list[str], capsys) -> tuple[dict, bool]:
    """The report, and whether features were extracted."""
    assert main(arguments) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), "features of" in captured.err


@pytest.mark.slow
def test_a_second_run_extracts_nothing_and_says_the_same(arguments, tmp_path, capsys):
    first, extracted = evaluated(arguments, capsys)
    again, extracted_again = evaluated(arguments, capsys)
    assert extracted and not extracted_again and again == first
    assert evaluated([*arguments, "--cache-size", "0"], capsys)[1]
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "real" / "0.png")  # another image of the same name
    assert evaluated(arguments, capsys)[0]["figures"] != first["figures"]
    for file in Path(os.environ["GMTOOL_CACHE"], "features").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert evaluated(arguments, capsys)[1]
