import colorsys
import itertools

import numpy as np
import pytest
import torch

from gmtool.evaluation.metrics.saturation import saturation


def test_the_figures_follow_their_definition():
    images = torch.randint(0, 256, (7, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, :, 0] = 0
    magnitude, share, colour = saturation(images.split(3))
    flat = images.permute(0, 2, 3, 1).reshape(-1, 3).tolist()
    hsv = [colorsys.rgb_to_hsv(*pixel)[1] for pixel in flat]
    assert colour.value == pytest.approx(np.mean(hsv))
    values = images.numpy() / 127.5 - 1
    assert magnitude.value == pytest.approx(np.abs(values).mean())
    assert share.value == pytest.approx((np.abs(values) == 1).mean()) and share.value >= 0.2
    assert (magnitude.images, share.images, colour.images) == (7, 7, 7)


@pytest.mark.parametrize(("value", "magnitude", "share"), [(0, 1, 1), (255, 1, 1), (51, 0.6, 0), (204, 0.6, 0)])
def test_images_of_one_value(value, magnitude, share):
    measured = saturation([torch.full((2, 3, 4, 4), value, dtype=torch.uint8)])
    assert [measurement.value for measurement in measured] == [pytest.approx(magnitude), share, 0]


def test_more_contrast_is_more_saturated():
    """As strong guidance does it: values stretched from the middle, and clipped by decoding."""
    drawn = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    by_scale = [saturation([(127.5 + 60 * by * drawn).clamp(0, 255).byte()]) for by in (1, 2, 4)]
    for first, second in itertools.pairwise(by_scale):
        assert first[0].value < second[0].value and first[1].value < second[1].value
