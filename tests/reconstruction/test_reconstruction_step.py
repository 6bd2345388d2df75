"""One step of a decoder and its discriminator: the losses written out, micro-batches, phases, what is not finite."""

from dataclasses import replace

import pytest
import torch
from decoders import CPU, RATE, decoder, discriminator, encode, images, perceptual, stepper
from torch import nn

from gmtool.reconstruction.augmentation import Augmentation, draw_augmentation
from gmtool.reconstruction.losses import adaptive_weight, discriminator_loss, generator_loss, hinge
from gmtool.reconstruction.settings import Phases
from gmtool.reconstruction.step import ImageBatch
from gmtool.streams import generator

pytest.importorskip("diffusers")


@pytest.mark.slow
def test_a_step_is_the_losses_written_out() -> None:
    taken = stepper()
    result = taken.take(ImageBatch(images()), 3, seed=5)

    stream = generator(5, "train", 3)
    latents = encode(images()).clone()
    sigma = 0.8 * torch.rand(4, 1, 1, 1, generator=stream)
    noisy = latents + sigma * torch.randn(latents.shape, generator=stream)
    of_decoder, of_fake, of_real = (draw_augmentation(4, stream) for _ in range(3))
    network, judge, augment = decoder(), discriminator(), Augmentation()
    adam = {"lr": RATE, "betas": (0.9, 0.95), "weight_decay": 0.0, "fused": True}
    optimizer, optimizer_d = (
        torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], **adam)
        for module in (network, judge.heads)
    )

    target = images().float() / 255
    made = network(noisy)
    plain = (made - target).abs().mean() + perceptual(2 * made - 1, 2 * target - 1).mean()
    adversarial = generator_loss(judge.eval()(augment(2 * made - 1, of_decoder))).mean()
    at_last = [torch.autograd.grad(term, network.last_weight, retain_graph=True)[0] for term in (plain, adversarial)]
    weight = adaptive_weight(*at_last)
    (plain + 0.75 * weight * adversarial).backward()
    optimizer.step()
    with torch.no_grad():
        fake = (255 * network(latents)).round().clamp(0, 255) / 127.5 - 1
    judge.train()
    logits_fake = judge(augment(fake, of_fake))
    logits_real = judge(augment(2 * target - 1, of_real))
    loss_d = discriminator_loss(hinge, logits_real, logits_fake).mean()
    optimizer_d.zero_grad()
    loss_d.backward()
    optimizer_d.step()

    close = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(result.loss, plain.detach(), **close)
    torch.testing.assert_close(result.figures["adaptive_weight"], weight, **close)
    torch.testing.assert_close(result.figures["loss_d"], loss_d.detach(), **close)
    same(taken.state.decoder.network, network)
    same(taken.state.discriminator.network.heads, judge.heads)


def same(one: nn.Module, other: nn.Module, atol: float = 2e-5) -> None:
    for (name, here), there in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(here, there, rtol=1e-4, atol=atol, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_do_not_change_a_step(size: int) -> None:
    whole, parts = stepper(), stepper(micro_batch=size)
    for step in range(2):
        one, other = (subject.take(ImageBatch(images()), step, 0) for subject in (whole, parts))
        assert other.record() == pytest.approx(one.record(), rel=1e-4, abs=1e-6)
    same(whole.state.decoder.network, parts.state.decoder.network)
    # a level of a fake image between two may come out as either, and AdamW moves by the rate in any case
    heads = [subject.state.discriminator.network.heads for subject in (whole, parts)]
    same(*heads, atol=0.3 * RATE)


def test_phases() -> None:
    taken = stepper(Phases(perceptual=1, discriminator=2, adversarial=3))
    before = {name: tensor.clone() for name, tensor in taken.state.discriminator.trained.state_dict().items()}
    seen = []
    for step in range(4):
        seen.append(set(taken.take(ImageBatch(images()), step, 0).record()))
        now = taken.state.discriminator.trained.state_dict()
        assert (step >= 2) == any(not torch.equal(before[name], tensor) for name, tensor in now.items())
    assert [name in names for names in seen for name in ("lpips", "loss_d", "adversarial")] == [
        *(False, False, False),
        *(True, False, False),
        *(True, True, False),
        *(True, True, True),
    ]


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    taken = replace(stepper(), perceptual=lambda images, targets: perceptual(images, targets) * float("nan"))
    taken.take(ImageBatch(images()), 0, 0)
    state = taken.state.decoder
    same(state.network, decoder(), atol=0)
    assert taken.take(ImageBatch(images()), 1, 0).skipped


def test_rehearsing_leaves_no_trace() -> None:
    taken = stepper()
    heads = {name: parameter.clone() for name, parameter in taken.state.discriminator.trained.named_parameters()}
    taken.rehearse(1, 4, CPU)
    assert all(parameter.grad is not None for parameter in taken.parameters if parameter.requires_grad)
    taken.zero_grad()
    assert all(parameter.grad is None for parameter in taken.parameters)
    same(taken.state.decoder.network, decoder(), atol=0)
    for name, parameter in taken.state.discriminator.trained.named_parameters():
        assert torch.equal(parameter, heads[name])


def test_activation_checkpointing_changes_nothing() -> None:
    one, other = stepper(), stepper()
    other.state.decoder.network.checkpoint_activations = True
    for subject in (one, other):
        subject.take(ImageBatch(images()), 0, 0)
    same(one.state.decoder.network, other.state.decoder.network)
