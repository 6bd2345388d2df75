"""Training straight from images: the same latents as the file's, mirrored by coins of their own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import Small

from gmtool.artifacts.latents import LatentsFile, open_latents
from gmtool.data.image_loader import ImageSource, open_images
from gmtool.data.image_sets import find_images
from gmtool.data.latent_loader import LatentBatch, latent_batches
from gmtool.errors import UserError
from gmtool.tokenizers.build import build_tokenizer


def source(small: Small, latents: LatentsFile, flip: bool) -> ImageSource:
    return open_images(small.classes / "images", latents, build_tokenizer(latents.tokenizer, torch.device("cpu")), flip)


def drawn(subject: ImageSource, start: int, stop: int, workers: int = 0) -> list[LatentBatch]:
    return list(subject.batches(7, 3, start, stop, workers))


def test_without_mirrors_it_is_the_latents_file(small: Small) -> None:
    """The same rows in the same order, to the rounding of the file's float16; labels by the file's classes."""
    with open_latents(small.latents("classes")) as latents:
        subject = source(small, latents, flip=False)
        np.testing.assert_array_equal(subject.labels, latents.labels)
        stored = list(latent_batches(latents, 7, 3, 5, 12, None))
    for sample, expected in zip(drawn(subject, 5, 12), stored, strict=True):
        np.testing.assert_array_equal(sample.rows, expected.rows)
        torch.testing.assert_close(sample.patches, expected.patches.float(), atol=1e-3, rtol=1e-3)
        assert not sample.patches.requires_grad


def test_mirrors_are_fair_coins_anew_each_time(small: Small) -> None:
    with open_latents(small.latents("classes")) as latents:
        plain, subject = source(small, latents, flip=False), source(small, latents, flip=True)
        mirrored = torch.cat([subject.tokenizer.encode(_all_images(small).flip(-1)).patches])
    straight = {
        int(row): patch for batch in drawn(plain, 0, 9) for row, patch in zip(batch.rows, batch.patches, strict=True)
    }
    heads: dict[int, list[bool]] = {}
    for batch in drawn(subject, 0, 90):
        for row, patch in zip(batch.rows.tolist(), batch.patches, strict=True):
            heads.setdefault(row, []).append(bool(torch.equal(patch, mirrored[row])))
            assert heads[row][-1] or torch.equal(patch, straight[row])
    every = [patch for row in heads.values() for patch in row]
    assert abs(np.mean(every) - 0.5) < 4 * 0.5 / len(every) ** 0.5
    assert sum(len(set(head)) == 2 for head in heads.values()) > 50  # most images come both ways


def _all_images(small: Small) -> torch.Tensor:
    paths = sorted((small.classes / "images").rglob("*.png"))
    arrays = [np.repeat(np.asarray(Image.open(path))[None], 3, 0) for path in paths]
    return torch.from_numpy(np.stack(arrays))


def test_neither_start_nor_workers_change_a_batch(small: Small) -> None:
    with open_latents(small.latents("classes")) as latents:
        subject = source(small, latents, flip=True)
    whole = drawn(subject, 0, 6)
    for start, workers in ((0, 2), (3, 0)):
        for sample, expected in zip(drawn(subject, start, 6, workers), whole[start:], strict=True):
            assert torch.equal(sample.patches, expected.patches)


def test_images_that_cannot_serve(small: Small, tmp_path: Path) -> None:
    with open_latents(small.latents("classes")) as latents:
        for name in ("a", "zebra"):
            (tmp_path / name).mkdir()
            Image.new("L", (8, 8)).save(tmp_path / name / "1.png")
        with pytest.raises(UserError, match="knows no class 'zebra': encode some images of each"):
            open_images(tmp_path, latents, source(small, latents, False).tokenizer, False)
        (tmp_path / "zebra/1.png").unlink()
        (tmp_path / "a/2.png").write_bytes(b"text")
        subject = replace(source(small, latents, False), images=find_images(tmp_path))
    with pytest.raises(UserError, match=r"a/2.png cannot be read as an image"):
        list(subject.batches(2, 0, 0, 1, 0))
