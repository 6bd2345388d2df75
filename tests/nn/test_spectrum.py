import math

import golden
import pytest
import torch
from safetensors.torch import load_file

from gmtool.mixture.gaussian_mixture import IsotropicGaussian
from gmtool.nn.spectrum import SpectrumMLP

S = golden.arrays("spectrum_mlp")


@pytest.mark.parametrize("size", ["", "_small"])
def test_weights_of_the_reference_load_and_give_its_spectrum(size):
    network = SpectrumMLP((4, 8, 8), hidden=(16, 8))
    network.load_state_dict(load_file(golden.DATA / "spectrum_mlp.safetensors"))
    output = network(IsotropicGaussian(S["mean" + size], S["var" + size]))
    torch.testing.assert_close(output, S["log_var" + size], **golden.TOLERANCE)


def test_the_spectrum_starts_white_and_has_mean_power_one():
    network = SpectrumMLP((3, 6, 5))
    gaussian = IsotropicGaussian(torch.randn(2, 3, 6, 5), torch.rand(2, 1, 6, 5))
    torch.testing.assert_close(network(gaussian), torch.zeros(2, 3, 6, 5), atol=1e-6, rtol=0)
    torch.nn.init.normal_(network.mlp[-1].bias)
    torch.testing.assert_close(network(gaussian).exp().mean((2, 3)), torch.ones(2, 3))


def test_a_smaller_map_keeps_the_low_frequencies():
    """Of a spectrum that falls with frequency the corners are kept, the constant first."""
    network = SpectrumMLP((1, 8, 8))
    frequency = torch.fft.fftfreq(8).abs()
    logits = -(frequency[:, None] + frequency[None])
    network.mlp[-1].bias.data = logits.flatten()
    small = network(IsotropicGaussian(torch.randn(1, 1, 3, 4), torch.ones(1, 1, 1, 1)))[0, 0]
    kept = frequency[[0, 1, -1]][:, None] + frequency[[0, 1, -2, -1]][None]
    expected = torch.log_softmax(-kept.flatten(), 0).reshape(3, 4) + math.log(12)
    torch.testing.assert_close(small, expected)
