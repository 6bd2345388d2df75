"""Losses, weights and augmentation beyond the reference's numbers."""

import pytest
import torch
from torch import Tensor

from gmtool.reconstruction.augmentation import KINDS, NUMBERS, Augmentation, AugmentationDraws, draw_augmentation
from gmtool.reconstruction.losses import MARGINS, adaptive_weight, discriminator_loss, half_loss


def images(count: int = 3, side: int = 16) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def draws(count: int, value: float, chance: float = 0.0) -> AugmentationDraws:
    return AugmentationDraws(torch.full((count, NUMBERS), value), torch.full((KINDS,), chance))


@pytest.mark.parametrize("name", MARGINS)
def test_a_blind_discriminator_is_undecided(name: str) -> None:
    """Without a difference between real and fake logits, 0 is the best of all constants."""
    values = torch.linspace(-2, 2, 41)[:, None]
    losses = discriminator_loss(MARGINS[name], values, values)
    assert losses.argmin() == 20 or losses.min() == losses[20]
    assert half_loss(MARGINS[name], values).diff().le(0).all()  # real logits may only grow


def test_the_adaptive_weight_balances_gradients_and_is_bounded() -> None:
    rec, adv = torch.randn(4, 5), torch.randn(4, 5)
    weight = adaptive_weight(rec, adv)
    torch.testing.assert_close((weight * adv).norm(), rec.norm(), rtol=1e-5, atol=0)
    assert adaptive_weight(rec, torch.zeros(4, 5)) == 1e4
    assert adaptive_weight(torch.zeros(4, 5), adv) == 0


def test_the_middle_of_the_numbers_leaves_images_alone() -> None:
    torch.testing.assert_close(Augmentation()(images(), draws(3, 0.5)), images())


@pytest.mark.parametrize(("number", "axis"), [(0, 2), (1, 3)])
def test_translation_moves_by_whole_pixels_and_zeros_come_in(number: int, axis: int) -> None:
    uniform = torch.full((3, NUMBERS), 0.5)
    uniform[:, number] = torch.tensor([0.0, 0.5, 0.999])
    moved = Augmentation(colours=False)(images(), AugmentationDraws(uniform, torch.zeros(KINDS)))
    for index, step in enumerate((-2, 0, 2)):  # an eighth of 16
        expected = images()[index].roll(-step, axis - 1)
        gone = slice(0, 2) if step < 0 else slice(16 - step, 16)
        expected.movedim(axis - 1, 0)[gone] = 0
        assert torch.equal(moved[index], expected)


def test_colours_are_those_of_the_formula() -> None:
    x = images(1)
    bright = AugmentationDraws(torch.tensor([[0.5, 0.5, 0.9, 0.5, 0.5, 0.5, 0.5]]), torch.zeros(KINDS))
    torch.testing.assert_close(Augmentation()(x, bright), x + 0.4)
    grey = AugmentationDraws(torch.tensor([[0.5, 0.5, 0.5, 0.0, 0.5, 0.5, 0.5]]), torch.zeros(KINDS))
    torch.testing.assert_close(Augmentation()(x, grey), x.mean(1, keepdim=True).expand_as(x))
    flat = AugmentationDraws(torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.0, 0.5, 0.5]]), torch.zeros(KINDS))
    torch.testing.assert_close(Augmentation()(x, flat).std(), x.std() / 2)


def test_each_kind_is_applied_by_its_chance() -> None:
    numbers = AugmentationDraws(torch.full((3, NUMBERS), 0.9), torch.tensor([0.4, 0.6, 0.6]))
    assert torch.equal(Augmentation(chance=0.3)(images(), numbers), images())
    moved = Augmentation(chance=0.5)(images(), numbers)
    assert torch.equal(moved, Augmentation(colours=False)(images(), numbers))
    assert not torch.equal(moved, images())


def test_gradients_pass_and_numbers_are_the_samples_own() -> None:
    x = images(4).requires_grad_()
    numbers = draw_augmentation(4, torch.Generator().manual_seed(1))
    augmentation = Augmentation(cutout=0.25)
    whole = augmentation(x, numbers)
    whole.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    torch.testing.assert_close(whole[1:3], augmentation(x[1:3], numbers.rows(slice(1, 3))))
