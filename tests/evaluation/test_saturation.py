import numpy as np
import pytest
import torch

from gmtool.evaluation.saturation import saturation


def test_the_figures_follow_their_definition():
    images = torch.randint(0, 256, (7, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, :, 0] = 0
    found = saturation(images.split(3))
    values = images.numpy() / 127.5 - 1
    assert found.magnitude == pytest.approx(np.abs(values).mean())
    assert found.share == pytest.approx((np.abs(values) == 1).mean()) and found.share >= 0.2
    assert found.images == 7


@pytest.mark.parametrize(("value", "magnitude", "share"), [(0, 1, 1), (255, 1, 1), (51, 0.6, 0), (204, 0.6, 0)])
def test_images_of_one_value(value, magnitude, share):
    found = saturation([torch.full((2, 3, 4, 4), value, dtype=torch.uint8)])
    assert (found.magnitude, found.share) == (pytest.approx(magnitude), share)


def test_more_contrast_is_more_saturated():
    """As strong guidance does it: values stretched from the middle, and clipped by decoding."""
    drawn = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    found = [saturation([(127.5 + 60 * by * drawn).clamp(0, 255).byte()]) for by in (1, 2, 4)]
    assert found[0].magnitude < found[1].magnitude < found[2].magnitude
    assert found[0].share < found[1].share < found[2].share
