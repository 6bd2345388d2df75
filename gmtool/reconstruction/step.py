"""One step of a decoder's training: the decoder's update, then the discriminator's.

The decoder is trained on latents with noise, sigma n with one sigma = tau U(0, 1) per sample; the discriminator on real
images, and on reconstructions by the updated decoder from latents without noise, rounded to 8 bits. All losses are
means over samples, and the adaptive weight is that of the whole batch of all processes: neither micro-batches nor
processes change a step.

The losses' gradients are taken at the images first; one backward pass through the decoder then serves all of them. With
several micro-batches and an adversarial loss, the decoder's forward pass is done twice: the adaptive weight must be
known before the first backward pass. Source: RAE (arXiv 2510.11690), and its public implementation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gmtool.distributed import ALONE, World
from gmtool.errors import is_out_of_memory
from gmtool.reconstruction.augmentation import Augmentation, AugmentationDraws, draw_augmentation
from gmtool.reconstruction.losses import MARGINS, MarginName, adaptive_weight, generator_loss, half_loss, l1_loss
from gmtool.reconstruction.settings import Phases
from gmtool.reconstruction.state import DecoderState, DiscriminatorState
from gmtool.streams import generator
from gmtool.training.logging import Record
from gmtool.training.schedule import Schedule
from gmtool.training.step import too_large

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""A distance (B,) of images (B, 3, S, S) in [-1, 1]."""
FIGURES = ("l1", "lpips", "adversarial")
"""The terms of the decoder's loss."""


@dataclass(frozen=True)
class ImageBatch:
    """This process's images, uint8 (B, 3, S, S), on the device."""

    x: Tensor


@dataclass(frozen=True)
class Weights:
    """Weights of the loss terms, lambda_P and lambda_A, and the upper bound of the adaptive weight."""

    perceptual: float = 1.0
    adversarial: float = 0.75
    adaptive_limit: float = 1e4


@dataclass(frozen=True)
class DiscriminatorLoss:
    """The discriminator's augmentation, the margin of its loss, and its learning rate."""

    augmentation: Augmentation
    margin: MarginName
    schedule: Schedule


@dataclass(frozen=True)
class StepResult:
    """A step that was taken, on the device; see `gmtool.training.loop.StepResult`.

    step: its number, from 1. rate: its learning rate. loss: () L1 + weighted LPIPS. skipped: () bool, whether an update
    was called off. figures: other figures () by name.
    """

    step: int
    rate: float
    loss: Tensor
    skipped: Tensor
    figures: dict[str, Tensor]

    def record(self) -> Record:
        """The step's figures; what is not finite is left out. Waits for the device."""
        record = {"step": self.step, "loss": self.loss.item(), "lr": self.rate}
        record |= {name: figure.item() for name, figure in self.figures.items()}
        return {name: value for name, value in record.items() if math.isfinite(value)}


@dataclass(frozen=True)
class _Draws:
    """The random numbers of this process's samples: noise of the latents, and two or three augmentations."""

    noise: Tensor
    of_decoder: AugmentationDraws
    of_fake: AugmentationDraws
    of_real: AugmentationDraws


@dataclass
class _Gradients:
    """Gradients at a micro-batch's images (b, 3, S, S): of L1 and LPIPS, and of the adversarial term."""

    plain: Tensor
    adversarial: Tensor | None


@dataclass(frozen=True)
class DecoderStepper:
    """Takes the training steps of a decoder.

    encode: images uint8 to latents. noise_tau: see the module. clip: bound of the norm of the decoder's gradient, by
    step. autocast: makes the context in which networks are called. micro_batch: images per forward and backward pass;
    None for the whole batch. lighter: what takes less memory, for messages.
    """

    encode: Callable[[Tensor], Tensor]
    state: DecoderState
    schedule: Schedule
    phases: Phases
    weights: Weights = Weights()
    noise_tau: float = 0.8
    perceptual: Perceptual | None = None
    adversarial: DiscriminatorLoss | None = None
    clip: Callable[[int], float] = lambda _step: math.inf
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    world: World = ALONE
    micro_batch: int | None = None
    lighter: str = "a smaller network"

    def take(self, batch: ImageBatch, step: int, seed: int) -> StepResult:
        """Take step ``step``, from 0, on this process's part of its batch; (seed, step) gives the random numbers.

        Raises MachineError, naming the repair, when the memory is not enough.
        """
        try:
            return self._take(batch.x, step, seed)
        except Exception as error:
            if is_out_of_memory(error):
                raise too_large(self.micro_batch or len(batch.x), self.lighter) from error
            raise

    def _take(self, images: Tensor, step: int, seed: int) -> StepResult:
        state = self.state.decoder
        latents = self._latents(images)
        draws = self._draws(latents, generator(seed, "train", step, device=images.device))
        means, weight = self._decoder_gradient(images, latents, draws, step)
        loss = means["l1"] + self.weights.perceptual * means.get("lpips", 0)
        norm = nn.utils.clip_grad_norm_(state.network.parameters(), self.clip(step))
        skipped = ~(torch.isfinite(loss) & torch.isfinite(norm))
        rate = self.schedule.at(step)
        state.optimizer.step(rate, skipped)
        for average in state.averages:
            average.update(state.network, step)
        figures = {**means, "grad_norm": norm}
        if weight is not None:
            figures["adaptive_weight"] = weight
        if self._discriminates(step):
            measured, called_off = self._train_discriminator(images, latents, draws, step)
            figures |= measured
            skipped = skipped | called_off
        return StepResult(step + 1, rate, loss, skipped, figures)

    @property
    def parameters(self) -> Sequence[Tensor]:
        """See `gmtool.training.micro_batch.Rehearsing`."""
        heads = (
            []
            if self.state.discriminator is None
            else [weights for weights in self.state.discriminator.trained.parameters() if weights.requires_grad]
        )
        return [*self.state.decoder.network.parameters(), *heads]

    def rehearse(self, size: int, count: int, device: torch.device) -> None:
        """See `gmtool.training.micro_batch.Rehearsing`; with all losses."""
        side = round(self.state.decoder.network.decoder.image_size)
        images = torch.zeros(min(2 * size, count), 3, side, side, dtype=torch.uint8, device=device)
        here = replace(self, micro_batch=size, world=ALONE, phases=Phases(0, 0, 0))
        latents = here._latents(images)
        draws = here._draws(latents, generator("rehearsal", device=device))
        with self.state.decoder.hold():
            here._decoder_gradient(images, latents, draws, 0)
            if here._discriminates(0):
                here._discriminator_gradient(images, latents, draws)

    def zero_grad(self) -> None:
        """See `gmtool.training.micro_batch.Rehearsing`."""
        self.state.decoder.optimizer.zero_grad()
        if self.state.discriminator is not None:
            self.state.discriminator.optimizer.zero_grad()

    def _discriminates(self, step: int) -> bool:
        return self.adversarial is not None and step >= self.phases.discriminator

    def _latents(self, images: Tensor) -> Tensor:
        """(B, C, h, w) float32, as many at once as a step computes."""
        with torch.no_grad():
            parts = [self.encode(images[rows]).float() for rows in self._parts(len(images))]
        return torch.cat(parts).clone()  # no longer what was made for inference alone

    def _draws(self, latents: Tensor, stream: torch.Generator) -> _Draws:
        """The numbers of this process's samples, drawn for those of all."""
        count, mine = len(latents) * self.world.size, self.world.rows(len(latents) * self.world.size)
        device = stream.device
        sigma = self.noise_tau * torch.rand(count, 1, 1, 1, generator=stream, device=device)
        noise = (sigma * torch.randn(count, *latents.shape[1:], generator=stream, device=device))[mine]
        augmentations = [draw_augmentation(count, stream).rows(mine) for _ in range(3)]
        return _Draws(noise, *augmentations)

    def _parts(self, count: int) -> list[slice]:
        size = self.micro_batch or count
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    # --- the decoder ----------------------------------------------------------------------------------------------

    def _decoder_gradient(
        self, images: Tensor, latents: Tensor, draws: _Draws, step: int
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Leave the loss's gradient in the decoder's parameters.

        Returns the means of the loss's terms, over the batch of all processes, and the adaptive weight, None without an
        adversarial term.
        """
        state, parts = self.state.decoder, self._parts(len(images))
        noisy = latents + draws.noise
        targets = images.float() / 255
        adversarial = self.adversarial is not None and step >= self.phases.adversarial
        state.optimizer.zero_grad()
        sums: dict[str, Tensor] = {}
        if not adversarial or len(parts) == 1:
            weight = None
            for rows in parts:
                with nullcontext() if rows == parts[-1] else state.hold():
                    with self.autocast():
                        made = state.forward(noisy[rows])
                    gradients = self._gradients(
                        made, targets[rows], draws.of_decoder.rows(rows), step, sums, len(images)
                    )
                    weight = self._adaptive_weight([self._at_last_layer(made, gradients)]) if adversarial else None
                    made.backward(self._combined(gradients, weight))
            return self._means(sums, len(images)), weight
        all_gradients, at_last = [], []
        for rows in parts:  # the last layer alone, for the weight
            with self.autocast():
                with torch.no_grad():
                    tokens = state.network.body(noisy[rows])
                made = state.network.head(tokens)
            all_gradients.append(
                self._gradients(made, targets[rows], draws.of_decoder.rows(rows), step, sums, len(images))
            )
            at_last.append(self._at_last_layer(made, all_gradients[-1]))
        weight = self._adaptive_weight(at_last)
        for rows, gradients in zip(parts, all_gradients, strict=True):
            with nullcontext() if rows == parts[-1] else state.hold():
                with self.autocast():
                    made = state.forward(noisy[rows])
                made.backward(self._combined(gradients, weight))
        return self._means(sums, len(images)), weight

    def _gradients(
        self, made: Tensor, targets: Tensor, draws: AugmentationDraws, step: int, sums: dict[str, Tensor], count: int
    ) -> _Gradients:
        """The gradients at images (b, 3, S, S), of means over ``count`` images; the terms are added to ``sums``."""
        images = made.detach().float().requires_grad_()

        def gradient(terms: dict[str, Tensor], factors: dict[str, float]) -> Tensor:
            for name, values in terms.items():
                sums[name] = sums.get(name, 0) + values.detach().sum()
            total = sum(
                (factors[name] * values.sum() for name, values in terms.items()), torch.zeros((), device=images.device)
            )
            return torch.autograd.grad(total / count, images)[0]

        terms = {"l1": l1_loss(images, targets)}
        if self.perceptual is not None and step >= self.phases.perceptual:
            with self.autocast():
                terms["lpips"] = self.perceptual(2 * images - 1, 2 * targets - 1).float()
        plain = gradient(terms, {"l1": 1.0, "lpips": self.weights.perceptual})
        if self.adversarial is None or step < self.phases.adversarial:
            return _Gradients(plain, None)
        assert self.state.discriminator is not None  # beside its loss
        augmented = self.adversarial.augmentation(2 * images - 1, draws)
        with self.autocast():
            logits = self.state.discriminator.network.eval()(augmented)
        return _Gradients(plain, gradient({"adversarial": generator_loss(logits)}, {"adversarial": 1.0}))

    def _at_last_layer(self, made: Tensor, gradients: _Gradients) -> Tensor | None:
        """Both gradients at the weight of the last layer, (2, ...); None without an adversarial term."""
        if gradients.adversarial is None:
            return None
        weight = self.state.decoder.network.last_weight
        both = (gradients.plain, gradients.adversarial)
        return torch.stack([torch.autograd.grad(made, weight, gradient, retain_graph=True)[0] for gradient in both])

    def _adaptive_weight(self, at_last: Sequence[Tensor | None]) -> Tensor:
        """The adaptive weight of the whole batch, from the gradients of the micro-batches of all processes."""
        plain, adversarial = self.world.mean(torch.stack([norms for norms in at_last if norms is not None]).sum(0))
        return adaptive_weight(plain, adversarial, self.weights.adaptive_limit)

    def _combined(self, gradients: _Gradients, weight: Tensor | None) -> Tensor:
        """The gradient of the whole loss at the images."""
        if gradients.adversarial is None or weight is None:
            return gradients.plain
        return gradients.plain + self.weights.adversarial * weight * gradients.adversarial

    def _means(self, sums: dict[str, Tensor], count: int) -> dict[str, Tensor]:
        """Sums over this process's ``count`` images as means over those of all."""
        totals = self.world.mean(torch.stack([sums[name] for name in sums]) / count)
        return dict(zip(sums, totals, strict=True))

    # --- the discriminator ----------------------------------------------------------------------------------------

    def _train_discriminator(
        self, images: Tensor, latents: Tensor, draws: _Draws, step: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Update the discriminator; returns figures, and whether the update was called off, () bool."""
        state, adversarial = self._discriminator()
        means = self._discriminator_gradient(images, latents, draws)
        for weights in state.trained.parameters():
            if weights.grad is not None:
                weights.grad = self.world.mean(weights.grad)
        norm = nn.utils.clip_grad_norm_(state.trained.parameters(), math.inf)
        loss = means["loss_real"] + means["loss_fake"]
        skipped = ~(torch.isfinite(loss) & torch.isfinite(norm))
        state.optimizer.step(adversarial.schedule.at(step), skipped)
        figures = {"loss_d": loss, "grad_norm_d": norm, "logits_real": means["real"], "logits_fake": means["fake"]}
        return figures, skipped

    def _discriminator_gradient(self, images: Tensor, latents: Tensor, draws: _Draws) -> dict[str, Tensor]:
        """Leave the gradient of this process's mean loss in the heads; returns means over all processes.

        The spectral norm makes one power iteration with the fake images, and one with the real ones.
        """
        state, adversarial = self._discriminator()
        margin, count = MARGINS[adversarial.margin], len(images)
        state.optimizer.zero_grad()
        sums: dict[str, Tensor] = {}
        for name, sign, numbers in (("fake", -1, draws.of_fake), ("real", 1, draws.of_real)):
            for rows in self._parts(count):
                seen = self._reconstructed(latents[rows]) if name == "fake" else images[rows]
                augmented = adversarial.augmentation(seen.float() / 127.5 - 1, numbers.rows(rows))
                state.network.train(rows.start == 0)
                with self.autocast():
                    logits = state.network(augmented)
                losses = half_loss(margin, sign * logits)
                (losses.sum() / count).backward()
                for key, values in ((name, logits.mean(1)), (f"loss_{name}", losses)):
                    sums[key] = sums.get(key, 0) + values.detach().sum()
        state.network.eval()
        return self._means(sums, count)

    def _reconstructed(self, latents: Tensor) -> Tensor:
        """Levels 0 ... 255 of the images that the present decoder makes, whole numbers."""
        with torch.no_grad(), self.autocast():
            return (255 * self.state.decoder.network(latents).float()).round().clamp(0, 255)

    def _discriminator(self) -> tuple[DiscriminatorState, DiscriminatorLoss]:
        assert self.state.discriminator is not None and self.adversarial is not None  # as it was asked for
        return self.state.discriminator, self.adversarial
