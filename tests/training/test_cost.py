"""The cost of a step: operations by hand, memory against what the same step keeps when it is computed."""

from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from gmtool.artifacts.method_record import MethodRecord
from gmtool.nn.build import build_network
from gmtool.nn.dit import DiTArchitecture
from gmtool.streams import generator
from gmtool.training.cost import StepCost, step_cost
from gmtool.training.task import Batch, task_of

FM = MethodRecord("fm", "gaussian", "independent", "class", False, 0.5, "logit-normal", 1.0, 0.1)
GM_KL = replace(FM, objective="gm-kl")
UNION = replace(GM_KL, source="gmm", coupling="mode")
CHANNELS, HEIGHT, WIDTH = SHAPE = (6, 4, 4)
SMALL = DiTArchitecture(SHAPE, depth=3, width=32, heads=2, classes=5)


def dit_products(architecture: DiTArchitecture) -> int:
    """Multiply-adds of a DiT's forward pass, per sample."""
    width, tokens, components = architecture.width, HEIGHT * WIDTH, architecture.components
    block = 12 * tokens * width**2 + 2 * tokens**2 * width + 6 * width**2
    outputs = components * (CHANNELS + 1) if components else CHANNELS
    embedding = 256 * width + width**2
    log_std = width**2 + width if components else 0
    channels = CHANNELS + architecture.context + outputs
    return architecture.depth * block + tokens * width * channels + embedding + 2 * width**2 + log_std


@pytest.mark.parametrize(
    ("method", "architecture"),
    [
        (FM, SMALL),
        (FM, replace(SMALL, depth=1, width=64)),
        (replace(FM, coupling="batch-ot"), SMALL),
        (GM_KL, replace(SMALL, components=3)),
        (UNION, replace(SMALL, components=3, modes=7)),
        (replace(UNION, mode_mean=True), replace(SMALL, components=3, modes=7, context=CHANNELS)),
    ],
    ids=["fm", "wide", "batch-ot", "gm-kl", "union", "context"],
)
def test_operations_are_those_of_the_closed_form(method: MethodRecord, architecture: DiTArchitecture) -> None:
    cost = step_cost(architecture, method, torch.float32)
    assert cost.flops == 3 * 2 * dit_products(architecture)
    assert cost.parameters == sum(parameter.numel() for parameter in build_network(architecture, 0).parameters())


@pytest.mark.slow
def test_precision_changes_memory_but_no_operation() -> None:
    full, half = (step_cost(SMALL, FM, precision) for precision in (torch.float32, torch.bfloat16))
    assert full.flops == half.flops
    assert half.sample_bytes < full.sample_bytes
    assert half.fixed_bytes > full.fixed_bytes  # the weights are kept in half precision too


@pytest.mark.slow
def test_activation_checkpointing_keeps_the_input_of_each_block_alone() -> None:
    """A block more keeps its input, (tokens, width) float32; the condition, which all share, is kept anyway."""
    deep, shallow = (
        step_cost(replace(SMALL, depth=depth), FM, torch.float32, checkpoint_activations=True) for depth in (5, 4)
    )
    assert deep.sample_bytes - shallow.sample_bytes == 4 * HEIGHT * WIDTH * SMALL.width
    assert deep.flops == step_cost(replace(SMALL, depth=5), FM, torch.float32).flops


def kept_bytes(count: int) -> int:
    """What a computed step of SMALL keeps for its backward pass, parameters left out."""
    network, kept = build_network(SMALL, 0), {}
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # a storage that is held stays where it is
        return tensor

    batch = Batch(torch.zeros(count, *SHAPE), torch.zeros(count, dtype=torch.long))
    task = task_of(FM, network)
    prepared = task.prepare(batch, task.draw(count, generator(0)))
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        task.losses(network, prepared)
    return sum(storage.nbytes() for place, storage in kept.items() if place not in own)


def test_memory_is_what_a_step_keeps() -> None:
    cost = step_cost(SMALL, FM, torch.float32)
    for count in (1, 5):
        assert cost.fixed_bytes + count * cost.sample_bytes == pytest.approx(kept_bytes(count), rel=0.01)


def test_memory_counts_weights_gradients_moments_and_averages() -> None:
    cost = StepCost(flops=0, sample_bytes=100, fixed_bytes=7, parameters=10)
    assert cost.memory(micro_batch=3, averages=2) == 4 * (1 + 1 + 2 + 2) * 10 + 7 + 3 * 100


@pytest.mark.gpu
def test_the_estimate_is_near_what_a_gpu_takes() -> None:
    architecture = DiTArchitecture((64, 16, 16), depth=8, width=512, heads=8, classes=5)
    cost, count = step_cost(architecture, FM, torch.bfloat16), 32
    network = build_network(architecture, 0).cuda()
    labels = torch.zeros(count, dtype=torch.long, device="cuda")
    batch = Batch(torch.zeros(count, 64, 16, 16, device="cuda"), labels)
    task = task_of(FM, network)
    prepared = task.prepare(batch, task.draw(count, generator(0, device="cuda")))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.autocast("cuda", torch.bfloat16):
        task.losses(network, prepared).mean().backward()
    taken = torch.cuda.max_memory_allocated() - before - 4 * cost.parameters  # the gradients
    assert 0.7 < (cost.fixed_bytes + count * cost.sample_bytes) / taken < 1.4
