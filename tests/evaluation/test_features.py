"""Which features are chosen, and what they are."""

import hashlib
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch
from points import normal
from torch_fidelity import feature_extractor_inceptionv3 as upstream

from gmtool.artifacts.latents import open_latents
from gmtool.distributed import World
from gmtool.errors import MachineError, UserError
from gmtool.evaluation.extractors import (
    EXTRACTORS,
    Described,
    ExtractorSettings,
    choose_extractors,
    choose_together,
    extractor_row,
)
from gmtool.evaluation.extractors.inception import weights_cache
from gmtool.evaluation.features import Features, expect_finite, extract_features, feature_statistics
from gmtool.evaluation.references import array_batches
from gmtool.forecast import Choice
from gmtool.progress import Progress

CPU = torch.device("cpu")
AUTO = ExtractorSettings()


@pytest.fixture
def described(world) -> Described:
    with open_latents(world / "latents.h5") as latents:
        return Described(latents.tokenizer, latents.descriptor_size)


def chosen(settings: ExtractorSettings, fetch: bool = True) -> Choice:
    (choice,) = choose_extractors(settings, Progress(), fetch).choices
    return choice


@pytest.mark.slow
def test_auto_takes_cached_inception_weights(described, inception_weights, monkeypatch):
    digest = hashlib.sha256(inception_weights.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(upstream, "URL_INCEPTION_V3", f"http://127.0.0.1:9/weights-{digest}.pth")
    weights_cache().parent.mkdir(parents=True)
    shutil.copy(inception_weights, weights_cache())
    choice = chosen(AUTO)
    assert choice.value == "inception" and str(weights_cache()) in choice.why
    extractor = extractor_row(choice.value).load().open_extractor(AUTO, described, CPU, Progress())
    assert digest in extractor.name and extractor.size == 2048


def test_auto_takes_the_tokenizer_when_weights_cannot_be_fetched():
    choice = chosen(AUTO)
    assert choice.value == "tokenizer" and "could not be fetched" in choice.why


def test_a_file_of_weights_asks_for_inception(inception_weights):
    choice = chosen(ExtractorSettings(inception_weights=inception_weights))
    assert choice.value == "inception" and str(inception_weights) in choice.why


def test_inception_that_was_asked_for_is_not_replaced():
    with pytest.raises(MachineError):
        choose_extractors(ExtractorSettings("inception"), Progress())


def test_nothing_is_fetched_before_the_work_begins():
    for settings in (AUTO, ExtractorSettings("inception")):
        choice = chosen(settings, fetch=False)
        assert choice.value == "inception" and "would be downloaded from http" in choice.why


@pytest.mark.parametrize("row", EXTRACTORS, ids=lambda row: row.name)
def test_every_extractor_holds_what_its_row_promises(row, described):
    family = row.load()
    assert callable(family.prepare) and callable(family.open_extractor)
    assert callable(family.feature_size) and ExtractorSettings(row.name).asked == (row.name,)


def test_a_name_that_is_in_no_row_is_refused():
    with pytest.raises(UserError, match=r"--features must be one of auto, all, inception, .*, not 'dino'"):
        ExtractorSettings("dino")
    for features in ("all,vgg16", "inception,auto"):
        with pytest.raises(UserError, match=r"--features (all|auto) stands alone: name the extractors, separated by"):
            ExtractorSettings(features)


def test_names_of_extractors_may_have_spaces_around_them():
    assert ExtractorSettings(" inception, vgg16 ").asked == ("inception", "vgg16")
    assert ExtractorSettings(" all").asked == ExtractorSettings("all").asked
    assert ExtractorSettings(" auto").automatic


def test_several_extractors_and_those_that_are_not_there(inception_weights):
    with_file = ExtractorSettings("tokenizer,inception", inception_weights)
    assert [choice.value for choice in choose_extractors(with_file, Progress()).choices] == ["tokenizer", "inception"]
    selected = choose_extractors(ExtractorSettings("inception,tokenizer"), Progress())
    assert [choice.value for choice in selected.choices] == [
        "tokenizer"
    ] and "could not be fetched" in selected.missing[0]
    with pytest.raises(MachineError, match=r"could not be fetched.*; no latents"):
        choose_extractors(ExtractorSettings("inception,tokenizer"), Progress(), refused={"tokenizer": "no latents"})
    with pytest.raises(UserError, match="names an extractor twice"):
        ExtractorSettings("tokenizer,tokenizer")


def test_other_processes_have_what_the_first_one_chose_or_say_why_not(monkeypatch, inception_weights):
    """One that cannot have it does not choose another; one that could have a better one does not take it."""
    second = World(1, 2, CPU)
    monkeypatch.setattr(World, "tell", lambda _world, _value: [[asdict(Choice("--features", name, "said"))], ["gone"]])
    name = "inception"
    with pytest.raises(MachineError, match="could not be fetched") as caught:
        choose_together(AUTO, Progress(), second)
    assert "\n" not in str(caught.value)
    name = "tokenizer"
    chosen = choose_together(ExtractorSettings(inception_weights=inception_weights), Progress(), second)
    assert chosen.choices == (Choice("--features", "tokenizer", "said"),) and chosen.missing == ("gone",)


def test_tokenizer_features_equal_the_stored_descriptors(described, world, digits):
    family = extractor_row("tokenizer").load()
    extractor = family.open_extractor(ExtractorSettings("tokenizer"), described, CPU, Progress())
    assert family.feature_size(AUTO, described) == extractor.size
    features = extract_features(extractor, array_batches(digits[:500], 64), 500, "digits", Progress())
    assert features.logits is None
    with open_latents(world / "latents.h5") as latents:
        np.testing.assert_allclose(features.vectors, latents.descriptors(slice(None)), rtol=1e-4, atol=1e-4)
    assert features.vectors.shape[1] == extractor.size


def test_rows_of_features_stay_together():
    features = Features(torch.arange(5.0)[:, None], torch.arange(5.0)[:, None] * 10)
    chosen = features.rows(torch.tensor([3, 1]))
    assert chosen.vectors.flatten().tolist() == [3, 1] and chosen.logits.flatten().tolist() == [30, 10]


def test_arrays_come_in_batches_with_channels_first():
    images = np.random.default_rng(0).integers(0, 256, (5, 2, 2, 3), dtype=np.uint8)
    batches = list(array_batches(images, 2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert np.array_equal(torch.cat(batches).permute(0, 2, 3, 1).numpy(), images)


def test_statistics_equal_numpys_over_several_chunks():
    features = normal(50, 6, 0, shift=1000.0)
    statistics = feature_statistics(features, rows_at_once=7)
    np.testing.assert_allclose(statistics.mean, features.double().numpy().mean(0), rtol=1e-13)
    np.testing.assert_allclose(statistics.covariance, np.cov(features.double().numpy(), rowvar=False), rtol=1e-10)
    assert statistics.count == 50


def test_features_that_are_no_numbers_are_refused():
    features = torch.zeros(4, 3)
    expect_finite(Features(features), "real/")
    features[1, 2], features[3, 0] = float("nan"), float("inf")
    with pytest.raises(UserError, match="real/: the features of 2 of 4 images are infinite or not a number"):
        expect_finite(Features(features), "real/")
