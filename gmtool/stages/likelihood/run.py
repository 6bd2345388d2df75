"""Compute the likelihood of held-out data under a run: its flow's density, and its mixture's NLL of the velocity."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from gmtool.artifacts.files import written_aside
from gmtool.artifacts.manifest import Input, Manifest, file_fingerprint, fingerprint
from gmtool.errors import UserError
from gmtool.evaluation.likelihood import (
    SourceDensity,
    flow_density,
    mixture_density,
    normal_density,
    random_signs,
    velocity_nll,
)
from gmtool.evaluation.references import LatentsReference
from gmtool.flow.source import ModeStatistics
from gmtool.mixture.diagonal import Posterior
from gmtool.nn.architecture import Conditions
from gmtool.progress import Progress
from gmtool.runtime import allow_tf32
from gmtool.sampling.model import TrainedModel, load_model, load_network, run_mixture
from gmtool.settings import as_flat
from gmtool.stages.likelihood.config import RESULT, LikelihoodConfig
from gmtool.stages.likelihood.plan import LikelihoodPlan, plan_likelihood
from gmtool.stages.likelihood.report import LikelihoodReport
from gmtool.streams import SampleNoise, key_seed
from gmtool.tokenizers.base import Encoded, Tokenizer, is_grey
from gmtool.tokenizers.build import build_tokenizer, takes_grey
from gmtool.training.batches import FreshAssignments, fresh_assignments


@dataclass(frozen=True, eq=False)
class Part:
    """Some of the data: x normalised (B, C, H, W), descriptors (B, D), labels (B,); indices: their numbers."""

    indices: range
    x: Tensor
    descriptors: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Given:
    """What a density is conditioned on: the network's conditions, and the statistics of the modes that source and
    coordinates depend on, if they do.

    weights: p(mode | class), (B, K), None for a run that knows no modes. log_weight: log p(mode), (B,) or 0.
    """

    conditions: Conditions
    modes: ModeStatistics | None
    weights: Tensor | None
    log_weight: Tensor


def likelihood(
    data: Path, run: Path, config: LikelihoodConfig, progress: Progress, output: Path = RESULT
) -> LikelihoodReport:
    """The negative log-likelihood of data under a run, also written to ``output``; see `gmtool.evaluation.likelihood`.

    Of several processes each takes its share, and all have the result. Raises what `plan_likelihood` does, and
    UserError for images that the tokenizer does not take and for a mixture that is missing or another one.
    """
    allow_tf32(False)
    plan = plan_likelihood(data, run, config, output)
    if plan.trained_on:
        some = f"{plan.trained_on:,} of these {len(plan.data):,} of " if plan.trained_on < len(plan.data) else ""
        progress.note(f"{some}{data} {'are' if some else 'is'} what {run} was trained on, not held-out data")
    share = plan.world.share(len(plan.data))
    figures: list[list[float]] = []  # not tensors: small ones that stay would scatter over the memory of large ones
    calls = 0.0
    with ExitStack() as stack:
        network = load_network(plan.run.architecture, plan.weights, plan.world.device).requires_grad_(False)
        model = load_model(plan.run, network, plan.world.device, torch.float32, config.weight.gmm, stack)
        assignments = None
        if plan.bound:
            assignments = fresh_assignments(run_mixture(plan.run, config.weight.gmm, stack), plan.world.device)
        progress.begin("likelihood", len(share), "images")
        stack.callback(progress.end)
        for part in _parts(plan, model, share):
            given = _given(plan, model, part, assignments)
            nll, evaluations = _density(plan, model, part, given)
            figures += torch.stack([nll, _velocity(plan, model, part, given)], dim=1).tolist()
            calls += evaluations * len(part.x)
            progress.advance(len(part.x), {"nats/dim": float(nll.mean())})
    return _report(plan, model, figures, calls)


def _report(plan: LikelihoodPlan, model: TrainedModel, figures: list[list[float]], calls: float) -> LikelihoodReport:
    world = plan.world
    mine = torch.tensor(figures, dtype=torch.float64).reshape(-1, 2)
    gathered = world.gather({"values": mine, "calls": torch.tensor([calls], dtype=torch.float64)})
    together = {}
    if gathered:
        together = {
            "values": torch.cat([tensors["values"] for tensors in gathered]),
            "calls": torch.stack([tensors["calls"] for tensors in gathered]).sum(0),
        }
    everywhere = world.broadcast(together)
    values = _image_means(everywhere["values"], torch.from_numpy(plan.images))
    count = len(values)
    error = values.std(0) / count**0.5 if count > 1 else torch.full((2,), torch.nan)
    stretch = float(model.statistics.std.double().log().mean())  # of the normalisation, per dimension
    nll, velocity = ((float(values[:, index].mean()), float(error[index])) for index in (0, 1))
    report = LikelihoodReport(
        run=str(plan.run.path),
        step=plan.step,
        data=str(plan.data.path),
        data_fingerprint=plan.data.fingerprint,
        count=count,
        dimensions=model.statistics.std.numel(),
        bound=plan.bound,
        latents=(nll[0] + stretch, nll[1]),
        normalised=nll,
        velocity=velocity if plan.run.method.method.objective.mixture else None,
        evaluations=float(everywhere["calls"]) / len(plan.data),
        probes=plan.config.probes,
        tolerance=plan.config.tolerance,
        seed=plan.config.seed,
    )
    if world.first:
        with written_aside(plan.output) as part:
            part.write_text(_manifest(plan, report).to_json() + "\n")
    return report


def _image_means(values: Tensor, images: Tensor) -> Tensor:
    """The means (images, n) of values (N, n) over the rows of an image, which are not independent of each other.

    images (N,) int64: a number for the image of each row, from 0.
    """
    counts = images.bincount()
    return values.new_zeros(len(counts), values.shape[1]).index_add_(0, images, values) / counts[:, None]


def _manifest(plan: LikelihoodPlan, report: LikelihoodReport) -> Manifest:
    """The result with what it was computed of, and how."""
    role = "latents" if isinstance(plan.data, LatentsReference) else "images"
    inputs = (
        Input("run", str(plan.run.path.absolute()), file_fingerprint(plan.weights)),
        Input(role, str(plan.data.path.absolute()), plan.data.fingerprint),
    )
    settings, details = as_flat(plan.config), asdict(report)
    digest = fingerprint([repr(sorted(details.items())), *(used.fingerprint for used in inputs)])
    return Manifest("likelihood", "likelihood", digest, settings, inputs, details=details)


def _parts(plan: LikelihoodPlan, model: TrainedModel, share: range) -> Iterator[Part]:
    """The data of this process, a batch at a time. Raises UserError for images that the tokenizer does not take."""
    data, device, batch = plan.data, plan.world.device, plan.config.batch_size
    batches = [range(start, min(start + batch, share.stop)) for start in range(share.start, share.stop, batch)]
    if isinstance(data, LatentsReference):
        descriptors = data.descriptors()
        encoded = (Encoded(data.patches(rows), descriptors[rows.start : rows.stop]) for rows in batches)
    else:
        tokenizer = build_tokenizer(plan.run.tokenizer(), device)
        grey, images = takes_grey(plan.run.tokenizer()), data.batches(tokenizer.image_size, batch, share)
        encoded = (_encoded(tokenizer, pixels.to(device), grey, data.path) for pixels in images)
    for indices, latents in zip(batches, encoded, strict=True):
        x = model.statistics.normalise(latents.patches.to(device))
        labels = torch.from_numpy(plan.labels[indices.start : indices.stop])
        yield Part(indices, x, latents.descriptors.to(device).float(), labels)


def _encoded(tokenizer: Tokenizer, images: Tensor, grey: bool, path: Path) -> Encoded:
    if grey and not is_grey(images).all():
        raise UserError(f"{path} holds colour images, but the run's are grey: give grey ones")
    with torch.no_grad():
        return tokenizer.encode(images)


def _given(plan: LikelihoodPlan, model: TrainedModel, part: Part, assignments: FreshAssignments | None) -> Given:
    # without a class the network is given the null label, as in training
    classes = torch.where(part.labels < 0, model.conditioning.classes, part.labels)
    weights = _mode_weights(plan, model, part.labels)
    if assignments is None or weights is None:
        nothing = torch.zeros(len(part.x), dtype=torch.float64)
        return Given(model.conditions(classes, None, None), None, weights, nothing)
    modes = _occurring_modes(assignments.posterior(part.descriptors - assignments.centre).cpu(), weights)
    log_weight = weights.gather(1, modes[:, None])[:, 0].double().log()
    # a source that is not coupled by modes is the whole mixture, also for a network that is conditioned on one
    statistics, mean = model.mode_inputs.of(modes)
    return Given(model.conditions(classes, modes, mean), statistics, weights, log_weight)


def _mode_weights(plan: LikelihoodPlan, model: TrainedModel, labels: Tensor) -> Tensor | None:
    """p(mode | class) of labels (B,), (B, K); without a class, -1, p(mode): the mean over the images in training.

    None for a run that knows no modes.
    """
    weights = model.statistics.mode_weights
    if weights is None or len(weights) == 1:
        return None if weights is None else weights.expand(len(labels), -1)
    counts = plan.run.class_counts
    images = torch.ones(len(weights)) if counts is None else torch.tensor(counts, dtype=weights.dtype)
    return torch.where(labels[:, None] < 0, images / images.sum() @ weights, weights[labels.clamp(min=0)])


def _occurring_modes(kept: Posterior, weights: Tensor) -> Tensor:
    """Each sample's most probable mode of those that occur in its class, (B,) int64: any other bounds nothing.

    kept: p(mode | descriptor). weights (B, K): p(mode | class). Where no kept mode occurs, the class's most frequent.
    """
    probabilities = weights.new_zeros(weights.shape).scatter_add_(1, kept.modes.long(), kept.probabilities)
    possible = torch.where(weights > 0, probabilities, 0.0)
    return torch.where(possible.sum(1, keepdim=True) > 0, possible, weights).argmax(1)


def _density(plan: LikelihoodPlan, model: TrainedModel, part: Part, given: Given) -> tuple[Tensor, int]:
    """-log p of normalised latents, per dimension, (B,) float64; evaluations of the network."""
    seeds = (key_seed(plan.config.seed, "probe", number) for number in range(plan.config.probes))
    probes = [random_signs(SampleNoise(seed, part.indices), part.x) for seed in seeds]
    field = model.method.field(model.predict(given.conditions), given.modes)
    density = flow_density(field, _source(model, given), part.x, probes, plan.config.tolerance)
    log_density = density.log_density.cpu() + given.log_weight
    return -log_density / part.x[0].numel(), density.evaluations


def _source(model: TrainedModel, given: Given) -> SourceDensity:
    """log p_1: of a mode, of all modes, or of N(0, I), in normalised latents."""
    if given.modes is None and model.method.uses_modes and model.modes is not None and given.weights is not None:
        return partial(mixture_density, weights=given.weights, modes_at=model.modes.at)
    return partial(normal_density, modes=given.modes)


def _velocity(plan: LikelihoodPlan, model: TrainedModel, part: Part, given: Given) -> Tensor:
    """The NLL of the velocity of normalised latents, averaged over times, (B,) float64; NaN without a mixture."""
    if not model.method.objective.mixture:
        return torch.full((len(part.x),), torch.nan, dtype=torch.float64)
    y, total = model.method.coordinates.enter(part.x, given.modes), torch.zeros(len(part.x), dtype=torch.float64)
    predict, times = model.predict(given.conditions), plan.config.times
    for number in range(times):
        noise = SampleNoise(key_seed(plan.config.seed, "velocity", number), part.indices)
        t = (number + noise.uniform(())).to(y) / times
        with torch.no_grad():
            total += velocity_nll(predict, y, noise.normal(y.shape[1:]).to(y), t).double().cpu() / times
    # velocities are scaled as the coordinates are
    return total + model.method.coordinates.log_scale(part.x, given.modes).double().cpu()
