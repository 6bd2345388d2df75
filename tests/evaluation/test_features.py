"""Which features are chosen, and what they are."""

import hashlib
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as upstream

from gmtool.artifacts.latents import open_latents
from gmtool.errors import MachineError
from gmtool.evaluation.features import (
    Features,
    InceptionExtractor,
    TokenizerExtractor,
    choose_extractor,
    extract_features,
)
from gmtool.evaluation.inception import weights_cache
from gmtool.evaluation.references import array_batches
from gmtool.progress import Progress
from gmtool.stages.evaluate.config import EvaluateConfig

CPU = torch.device("cpu")
AUTO = EvaluateConfig()


@pytest.fixture
def spec(world):
    with open_latents(world / "latents.h5") as latents:
        return latents.tokenizer


class Notes(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


def test_auto_takes_cached_inception_weights(spec, inception_weights, monkeypatch):
    digest = hashlib.sha256(inception_weights.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(upstream, "URL_INCEPTION_V3", f"http://127.0.0.1:9/weights-{digest}.pth")
    weights_cache().parent.mkdir(parents=True)
    shutil.copy(inception_weights, weights_cache())
    progress = Notes()
    extractor = choose_extractor(AUTO, spec, CPU, progress)
    assert isinstance(extractor, InceptionExtractor) and digest in extractor.name
    assert len(progress.lines) == 1 and str(weights_cache()) in progress.lines[0]


def test_auto_takes_the_tokenizer_when_weights_cannot_be_fetched(spec):
    progress = Notes()
    assert isinstance(choose_extractor(AUTO, spec, CPU, progress), TokenizerExtractor)
    assert len(progress.lines) == 1 and "could not be fetched" in progress.lines[0]


def test_inception_that_was_asked_for_is_not_replaced(spec):
    with pytest.raises(MachineError):
        choose_extractor(replace(AUTO, features="inception"), spec, CPU, Progress())


def test_tokenizer_features_need_no_note_and_equal_the_stored_descriptors(spec, world, digits):
    progress = Notes()
    extractor = choose_extractor(replace(AUTO, features="tokenizer"), spec, CPU, progress)
    found = extract_features(extractor, array_batches(digits[:500], 64), 500, "digits", progress)
    assert progress.lines == [] and found.logits is None
    with open_latents(world / "latents.h5") as latents:
        np.testing.assert_allclose(found.vectors, latents.descriptors(slice(None)), rtol=1e-4, atol=1e-4)
    assert found.vectors.shape[1] == extractor.size


def test_rows_of_features_stay_together():
    features = Features(torch.arange(5.0)[:, None], torch.arange(5.0)[:, None] * 10)
    chosen = features.rows(torch.tensor([3, 1]))
    assert chosen.vectors.flatten().tolist() == [3, 1] and chosen.logits.flatten().tolist() == [30, 10]


def test_arrays_come_in_batches_with_channels_first():
    images = np.random.default_rng(0).integers(0, 256, (5, 2, 2, 3), dtype=np.uint8)
    batches = list(array_batches(images, 2))
    assert [len(each) for each in batches] == [2, 2, 1]
    assert np.array_equal(torch.cat(batches).permute(0, 2, 3, 1).numpy(), images)
