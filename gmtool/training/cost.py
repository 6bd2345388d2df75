"""The cost of a training step, estimated without computing it: its operations and its memory.

The step is traced with tensors that have shapes and no numbers, for one and for two samples: the difference is the
cost of a sample, the rest that of every step. Floating-point operations are those of matrix products, convolutions and
attention, two per multiply-add; a step takes three times those of its forward pass, as each product has two in the
backward pass. What is recomputed under activation checkpointing does not count, since it is no progress.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from gmtool.artifacts.method_record import MethodRecord
from gmtool.flow.coupling import Independent
from gmtool.nn.architecture import Architecture
from gmtool.nn.build import build_network
from gmtool.nn.conditioning import conditioning_of
from gmtool.nn.network import Network
from gmtool.runtime import autocast
from gmtool.training.task import Task, task_of

FORWARD_AND_BACKWARD = 3
"""Products of a training step for each product of its forward pass."""


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Operations of softmax(q k^T) v for shapes (batch, heads, tokens, size): two products, two per multiply-add."""
    batch, heads, tokens, size = query
    return 2 * batch * heads * tokens * key[2] * (size + value[3])


ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
"""The attention that the trace meets, for which torch's own counter has no formula."""


@dataclass(frozen=True)
class StepCost:
    """The cost of a training step.

    flops: floating-point operations per sample. sample_bytes, fixed_bytes: memory of the activations, per sample and in
    addition per step. parameters: their number.
    """

    flops: int
    sample_bytes: int
    fixed_bytes: int
    parameters: int

    def memory(self, micro_batch: int, averages: int, shards: int = 1, moments: int = 8) -> int:
        """About the bytes per process that training takes with ``micro_batch`` samples computed at once:

            (4 (2 + averages) + moments) parameters / shards + fixed_bytes + micro_batch sample_bytes,

        that is, weights, gradients and ``averages`` moving averages in float32, ``moments`` bytes per parameter of the
        optimizer's state, and the activations. The libraries' own memory, and what the allocator loses, are added to
        it. shards: number of processes that share the weights.
        """
        return (
            (4 * (2 + averages) + moments) * self.parameters // shards
            + self.fixed_bytes
            + micro_batch * self.sample_bytes
        )


@dataclass(frozen=True)
class Teaching:
    """The teacher's part of a student's step: its architecture and its evaluations per sample."""

    architecture: Architecture
    method: MethodRecord
    evaluations: int


def step_cost(
    architecture: Architecture,
    method: MethodRecord,
    precision: torch.dtype,
    checkpoint_activations: bool = False,
    teaching: Teaching | None = None,
) -> StepCost:
    """The cost of a training step of a method, its network computed in ``precision``.

    checkpoint_activations: see `gmtool.nn.network.Network`. teaching: the teacher's part, for a student, whose rolls
    cost little beside the networks and are left out; None counts the student alone.
    """
    student = method.student
    if student is not None:
        stand_in = replace(method, student=None, objective="gm-kl" if architecture.components else "fm")
        stand_in = replace(stand_in, source="gaussian", coupling="independent", transition_ratio=0.5)
        once = step_cost(replace(architecture, velocities=1), stand_in, precision, checkpoint_activations)
        calls = student.evaluations if student.data_free else 1
        asked = 0
        if teaching is not None:
            taught = step_cost(teaching.architecture, teaching.method, precision)
            asked = teaching.evaluations * taught.flops // FORWARD_AND_BACKWARD
        return replace(once, flops=calls * once.flops + asked, sample_bytes=calls * once.sample_bytes)
    with torch.device("meta"):
        network = build_network(architecture, seed=0, checkpoint_activations=checkpoint_activations)
    with FakeTensorMode(allow_non_fake_inputs=True):  # the random numbers' generator has no fake
        network.to_empty(device="cpu")
        task = task_of(method, network)
        own = list(network.parameters())
        one, two = (trace(_loss_of(network, task), own, precision, count) for count in (1, 2))
    return StepCost(
        flops=FORWARD_AND_BACKWARD * (two.flops - one.flops),
        sample_bytes=two.bytes - one.bytes,
        fixed_bytes=2 * one.bytes - two.bytes,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
    )


def parameters_of(architecture: Architecture) -> int:
    """The number of a network's parameters."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_network(architecture, seed=0).parameters())


def evaluation_flops(architecture: Architecture, precision: torch.dtype) -> int:
    """Floating-point operations of a network for one sample, evaluated once in ``precision`` and not trained."""
    with torch.device("meta"):
        network = build_network(architecture, seed=0)

    def evaluate(count: int) -> object:
        x, labels = torch.zeros(count, *architecture.shape), torch.zeros(count, dtype=torch.long)
        return network(x, torch.zeros(count), conditioning_of(architecture, "none").given(labels, labels, x))

    with FakeTensorMode(allow_non_fake_inputs=True):
        network.to_empty(device="cpu")
        one, two = (trace(evaluate, network.parameters(), precision, count) for count in (1, 2))
    return two.flops - one.flops


@dataclass(frozen=True)
class Trace:
    """A forward pass: its floating-point operations, and the bytes kept for the backward pass besides parameters."""

    flops: int
    bytes: int


def _loss_of(network: Network, task: Task) -> Callable[[int], object]:
    """A function of a number of samples that computes their losses."""
    if task.method.coupling.whole_batch:  # an assignment looks at numbers, and costs none of what is counted
        task = replace(task, method=replace(task.method, coupling=Independent()))

    def losses(count: int) -> object:
        prepared = task.prepare(task.any_batch(count, torch.device("cpu")), task.draw(count, torch.Generator()))
        return task.losses(network, prepared)

    return losses


def trace(forward: Callable[[int], object], parameters: Iterable[Tensor], precision: torch.dtype, count: int) -> Trace:
    """Trace the forward pass of ``count`` samples that ``forward(count)`` computes.

    It is called in a mode of tensors that have shapes and no numbers, such as FakeTensorMode. parameters: tensors that
    exist anyway, and whose memory is not counted. precision: of autocast; none for float32.
    """
    kept: dict[int, int] = {}
    own = {_storage(parameter) for parameter in parameters}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        saved_tensors_hooks(keep, lambda tensor: tensor),
        FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter,
        autocast(torch.device("cpu"), precision),
    ):
        forward(count)
    return Trace(counter.get_total_flops(), sum(kept.values()))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
