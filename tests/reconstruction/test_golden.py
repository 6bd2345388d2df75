"""The parts of adversarial training against values of RAE's public implementation."""

import pytest
import torch
from golden import DATA, TOLERANCE, arrays
from safetensors.torch import load_file
from torch import Tensor

from gmtool.foreign.dino import dino_weights
from gmtool.reconstruction.augmentation import Augmentation, AugmentationDraws
from gmtool.reconstruction.discriminator import DinoFeatures, Discriminator, default_blocks
from gmtool.reconstruction.discriminator_weights import vit_from
from gmtool.reconstruction.losses import MARGINS, adaptive_weight, discriminator_loss, generator_loss, l1_loss


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return arrays("decoder_gan")


@pytest.fixture
def discriminator() -> Discriminator:
    """The reference's small discriminator, loaded strictly from its own layout."""
    weights = load_file(DATA / "decoder_gan.safetensors")
    dino = {name.removeprefix("dino."): tensor for name, tensor in weights.items() if name.startswith("dino.")}
    network = vit_from(dino_weights(dino, heads=2))
    judge = Discriminator(DinoFeatures(network, default_blocks(4)))
    heads = {name: tensor for name, tensor in weights.items() if name.startswith("heads.")}
    report = judge.load_state_dict(heads, strict=False)
    assert report.unexpected_keys == []
    assert all(name.startswith("features.") for name in report.missing_keys)
    return judge


def test_features(discriminator: Discriminator, golden: dict[str, Tensor]) -> None:
    for number, tokens in enumerate(discriminator.features(golden["fake"])):
        torch.testing.assert_close(tokens[..., ::7], golden[f"activation{number}"], **TOLERANCE)


def test_logits(discriminator: Discriminator, golden: dict[str, Tensor]) -> None:
    for mode in ("eval", "train"):  # in this order: in training each pass moves the spectral norm
        discriminator.train(mode == "train")
        for name in ("fake", "real"):
            torch.testing.assert_close(discriminator(golden[name]), golden[f"logits_{name}_{mode}"], **TOLERANCE)


def test_losses(golden: dict[str, Tensor]) -> None:
    real, fake = golden["logits_real_eval"], golden["logits_fake_eval"]
    for name, margin in MARGINS.items():
        loss = discriminator_loss(margin, real, fake).mean()
        torch.testing.assert_close(loss, golden[f"{name}_d"][0], **TOLERANCE)
    torch.testing.assert_close(generator_loss(fake).mean(), golden["g"][0], **TOLERANCE)


def test_augmentation(golden: dict[str, Tensor]) -> None:
    for name, numbers, augmentation in (
        ("augmented", "aug_uniform", Augmentation()),
        ("augmented_cutout", "aug_cutout_uniform", Augmentation(cutout=0.2)),
    ):
        draws = AugmentationDraws(golden[numbers][:, :, 0, 0].T, torch.zeros(3))
        torch.testing.assert_close(augmentation(golden["fake"], draws), golden[name], **TOLERANCE)


def test_adaptive_weight(discriminator: Discriminator, golden: dict[str, Tensor]) -> None:
    """Of a decoder that is one convolution k = 1 and a tanh."""
    weight = golden["aw_weight"].clone().requires_grad_()
    images = torch.tanh(torch.einsum("ij,bjhw->bihw", weight, golden["aw_z"]))
    l1 = l1_loss(images, golden["real"]).mean()
    adversarial = generator_loss(discriminator.eval()(images)).mean()
    torch.testing.assert_close(l1, golden["aw_l1"][0], **TOLERANCE)
    torch.testing.assert_close(adversarial, golden["aw_g"][0], **TOLERANCE)
    gradients = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (l1, adversarial)]
    adaptive = adaptive_weight(*gradients)
    torch.testing.assert_close(adaptive, golden["aw_value"][0], **TOLERANCE)
    (l1 + 0.75 * adaptive * adversarial).backward()
    torch.testing.assert_close(weight.grad, golden["aw_grad_total"], **TOLERANCE)
