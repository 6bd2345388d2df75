"""PSNR, SSIM and LPIPS against their definitions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gmtool.errors import MachineError, UserError
from gmtool.progress import Progress
from gmtool.reconstruction import perceptual
from gmtool.reconstruction.perceptual import Lpips, load_lpips, vgg_file
from gmtool.reconstruction.quality import psnr, ssim

CPU = torch.device("cpu")


def images(count: int, side: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=draw, dtype=torch.uint8)


def test_psnr_of_a_constant_error() -> None:
    target = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    decibels = psnr(target + torch.tensor([1, 10], dtype=torch.uint8)[:, None, None, None], target)
    torch.testing.assert_close(decibels, torch.tensor([48.1308, 28.1308]), atol=1e-4, rtol=0)
    torch.testing.assert_close(psnr(target, target), torch.full((2,), 100.0))


def test_ssim_is_that_of_its_definition() -> None:
    x, y = images(2, 16, 0), images(2, 16, 1)
    y = (0.7 * x.float() + 0.3 * y.float()).round().to(torch.uint8)
    place = np.arange(11) - 5
    window = np.exp(-(place[:, None] ** 2 + place[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    expected = []
    for a, b in zip(x.numpy().astype(float), y.numpy().astype(float), strict=True):
        values = []
        for channel in range(3):
            for row in range(6):
                for column in range(6):
                    u = a[channel, row : row + 11, column : column + 11]
                    v = b[channel, row : row + 11, column : column + 11]
                    mu, mv = (window * u).sum(), (window * v).sum()
                    su, sv = (window * (u - mu) ** 2).sum(), (window * (v - mv) ** 2).sum()
                    suv = (window * (u - mu) * (v - mv)).sum()
                    c1, c2 = 2.55**2, 7.65**2
                    values.append((2 * mu * mv + c1) * (2 * suv + c2) / ((mu**2 + mv**2 + c1) * (su + sv + c2)))
        expected.append(np.mean(values))
    np.testing.assert_allclose(ssim(x, y).numpy(), expected, rtol=1e-6)
    assert torch.equal(ssim(x, x), torch.ones(2))


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torchvision's VGG16 with random weights, less its classifier."""
    from torchvision.models import vgg16

    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = vgg16(weights=None).features
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save({f"features.{name}": tensor for name, tensor in features.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def lpips(vgg: Path) -> Lpips:
    return load_lpips(vgg, CPU)


@pytest.mark.slow
def test_lpips_is_that_of_its_definition(lpips: Lpips, vgg: Path) -> None:
    from torchvision.models import vgg16

    network = vgg16(weights=None).features.eval()
    network.load_state_dict({k.removeprefix("features."): v for k, v in torch.load(vgg, weights_only=True).items()})
    x, y = (images(2, 32, seed).float() / 127.5 - 1 for seed in (0, 1))
    mean, std = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    expected = torch.zeros(2)
    a, b = ((pictures - mean[:, None, None]) / std[:, None, None] for pictures in (x, y))
    with torch.no_grad():
        readings = {3: 0, 8: 1, 15: 2, 22: 3, 29: 4}
        for number, layer in enumerate(network[:30]):
            a, b = layer(a), layer(b)
            if number in readings:
                linear = lpips.network.get_parameter(f"lin{readings[number]}.model.1.weight")[0, :, 0, 0]
                difference = a / a.norm(dim=1, keepdim=True) - b / b.norm(dim=1, keepdim=True)
                expected += torch.einsum("bchw,c->bhw", difference**2, linear).mean((1, 2))
        distances = lpips(x, y)
    torch.testing.assert_close(distances, expected, rtol=2e-3, atol=1e-5)  # its own norm has an epsilon
    assert lpips(x, x).abs().max() < 1e-6


@pytest.mark.slow
def test_gradients_reach_the_image_alone(lpips: Lpips) -> None:
    x, y = (images(1, 32, seed).float() / 127.5 - 1 for seed in (0, 1))
    x.requires_grad_()
    lpips(x, y).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in lpips.parameters())


@pytest.mark.slow
def test_weights_of_another_network(tmp_path: Path) -> None:
    from torchvision.models import alexnet

    torch.save(alexnet(weights=None).state_dict(), tmp_path / "alexnet.pth")
    with pytest.raises(UserError, match=r"--lpips-weights .*alexnet\.pth does not hold the weights of VGG16"):
        load_lpips(tmp_path / "alexnet.pth", CPU)
    (tmp_path / "cut.pth").write_bytes((tmp_path / "alexnet.pth").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cut\.pth"):
        load_lpips(tmp_path / "cut.pth", CPU)
    with pytest.raises(UserError, match=r"nowhere\.pth is not a file"):
        vgg_file(tmp_path / "nowhere.pth", Progress())


def test_without_network_the_message_names_the_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(perceptual, "VGG_URL", "http://127.0.0.1:9/vgg16-01234567.pth")
    with pytest.raises(MachineError, match="--lpips-weights FILE, or use --perceptual none"):
        vgg_file(None, Progress())
