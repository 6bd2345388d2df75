"""What mixtures cost beside the network: a GM-ODE 2 step, a gm-kl training step, the memory of the loss.

For each latent shape, with one network of size DiT-B (K = 8), medians of interleaved runs:

- step: one step of gm-ode (order 2, 8 sub-steps) over one of euler, which takes the same mixture's mean; and one
  training step (forward, backward, AdamW) of gm-kl over one of fm;
- arithmetic: the same two solvers when the network costs nothing, beside the floor: the time of reading the K means
  once and writing one mean, by the bandwidth that a copy reaches on this device; and the bytes that they move in
  units of the means, which depend on no machine;
- the floor of a training step: gm-kl's FLOPs (forward, backward) over those of fm, by the larger head alone;
- memory: peak of the loss and its gradient, from the head's tokens on, in units of the K means (a process of its own).

    python examples/benchmarks/solvers.py --device cpu --batch 1
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from gmtool.console import print_table
from gmtool.flow.method import Method, fm, gmflow
from gmtool.flow.model import Predict, mixture_model, velocity_model
from gmtool.flow.objective import transition_loss
from gmtool.flow.solvers.base import integrate
from gmtool.flow.solvers.euler import Euler
from gmtool.flow.solvers.gm_ode import GmOde
from gmtool.flow.times import full_grid
from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.architecture import Conditions
from gmtool.nn.build import build_network, named
from gmtool.nn.heads import make_head, output_layer
from gmtool.nn.network import Network
from gmtool.runtime import resolve_device
from gmtool.streams import generator
from gmtool.training.optimizer import make_optimizer
from gmtool.training.settings import OptimizerSettings

Shape = tuple[int, int, int]
COMPONENTS, SUBSTEPS, STEPS = 8, 8, 3


def medians(actions: list[Callable[[], object]], repeats: int, device: torch.device) -> list[float]:
    """The median seconds of each, run in turn so that a busy machine hurts them alike; the first round warms up."""
    seconds: list[list[float]] = [[] for _ in actions]
    for _ in range(repeats + 1):
        for action, taken in zip(actions, seconds, strict=True):
            started = time.perf_counter()
            action()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - started)
    return [statistics.median(times[1:]) for times in seconds]


def network_of(shape: Shape, components: int, device: torch.device) -> Network:
    return build_network(replace(named("B", shape), components=components), seed=0).to(device)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU, as training and sampling run there; float32 on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@torch.inference_mode()
def solver_seconds(shape: Shape, options: argparse.Namespace, device: torch.device) -> tuple[list[float], list[float]]:
    """Seconds a step of (gm-ode, euler): with the network, and with its answer given."""
    network = network_of(shape, COMPONENTS, device).eval()
    x = torch.randn(options.batch, *shape, device=device)

    def predict(x_t: torch.Tensor, t: torch.Tensor) -> GaussianMixture:
        with autocast(device):
            return network(x_t, t, Conditions())

    known = predict(x, torch.ones(options.batch, device=device))

    def solvers(predict: Predict) -> list[Callable[[], object]]:
        grid = full_grid(STEPS)
        return [
            partial(integrate, GmOde(order=2, substeps=SUBSTEPS), mixture_model(predict), x, grid),
            partial(integrate, Euler(), velocity_model(predict), x, grid),
        ]

    whole = medians(solvers(predict), options.repeats, device)
    arithmetic = medians(solvers(lambda *_: known), 4 * options.repeats, device)
    return [seconds / STEPS for seconds in whole], [seconds / STEPS for seconds in arithmetic]


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read, written = ([tensor for tensor in tree_leaves(part) if torch.is_tensor(tensor)] for part in (args, result))
        places = {tensor.untyped_storage().data_ptr() for tensor in read}
        view = all(tensor.untyped_storage().data_ptr() in places for tensor in written)
        if func._schema.is_mutable or not view:
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in (*read, *written))
        return result


@torch.inference_mode()
def traffic(shape: Shape) -> float:
    """Bytes that gm-ode's arithmetic moves in a step, in units of the K means of the velocity."""
    channels, *positions = shape
    means = torch.randn(1, *positions, COMPONENTS, channels).movedim((-2, -1), (1, 2))
    log_weights = torch.log_softmax(torch.randn(1, COMPONENTS, 1, *positions), 1)
    known = GaussianMixture(means, log_weights, torch.ones(1, 1, 1, 1, 1))

    solver, model = GmOde(order=2, substeps=SUBSTEPS), mixture_model(lambda *_: known)
    with Traffic() as moved:
        integrate(solver, model, torch.randn(1, *shape), full_grid(STEPS))
    return moved.bytes / STEPS / (4 * means.numel())


def training_steps(shape: Shape, options: argparse.Namespace, device: torch.device) -> list[Callable[[], None]]:
    """Training steps of gm-kl, fm, fm and gm-kl: where a network lies in memory moves its time by some percent."""
    x = torch.randn(options.batch, *shape, device=device)

    def step_of(method: Method) -> Callable[[], None]:
        network = network_of(shape, COMPONENTS if method.objective.mixture else 0, device)
        optimizer = make_optimizer(network, OptimizerSettings(), 1e-4)
        never = torch.zeros((), dtype=torch.bool, device=device)

        def step() -> None:
            draws = method.draw(len(x), shape, generator(0, device=device))
            with autocast(device):
                predict = partial(network, conditions=Conditions())
                loss = method.loss(predict, method.pair(x, draws.noise), draws).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(1e-4, never)

        return step

    return [step_of(method) for method in (gmflow(), fm(), fm(), gmflow())]


def flops(action: Callable[[], object]) -> int:
    """Of its matrix products."""
    with FlopCounterMode(display=False) as counted:
        action()
    return counted.get_total_flops()


def loss_memory(shape: Shape, batch: int, name: str) -> float:
    """Peak memory of head and loss, forward and backward, in units of the means; called in a process of its own."""
    device = torch.device(name)
    torch.set_num_threads(1)

    def peak() -> int:
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated(device)
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    head = make_head(output_layer(16, shape[0], COMPONENTS), shape, COMPONENTS, 16).to(device)

    def loss_of(count: int) -> torch.Tensor:
        tokens = torch.randn(count, shape[1] * shape[2], 16, device=device)
        predicted = head(tokens, torch.randn(count, 16, device=device))
        x, t = torch.randn(count, *shape, device=device), torch.full((count,), 0.5, device=device)
        return transition_loss(predicted, x, t, x, 0.5 * t).sum()

    loss_of(1).backward()  # the libraries' own memory is not charged
    before = peak()
    loss_of(batch).backward()
    return (peak() - before) / (4 * batch * COMPONENTS * math.prod(shape))


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of a copy that no cache holds."""
    source = torch.ones(2**26, device=device)
    (seconds,) = medians([partial(torch.empty_like(source).copy_, source)], 5, device)
    return 2 * source.numel() * source.element_size() / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--batch", type=int, default=1, help="samples per step")
    parser.add_argument("--memory-batch", type=int, default=32, help="samples of the loss whose memory is measured")
    parser.add_argument("--first", type=int, default=0, help="1 leaves out the latents of 4 x 32 x 32")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the median is taken")
    options = parser.parse_args()
    device = resolve_device(options.device)
    shapes = [(4, 32, 32), (768, 16, 16)][options.first :]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        # first of all: on Linux a process begins with the peak memory of the one that started it
        memory = pool.apply(loss_memory, (shapes[-1], options.memory_batch, str(device)))
    bandwidth = copy_bandwidth(device)
    rows = []
    for shape in shapes:
        whole, arithmetic = solver_seconds(shape, options, device)
        steps = training_steps(shape, options, device)
        first, plain, other, last = medians(steps, options.repeats, device)
        more, less = map(flops, steps[:2])
        channels, height, width = shape
        floor = 4 * options.batch * (COMPONENTS + 1) * channels * height * width / bandwidth
        rows.append(
            (
                " x ".join(map(str, shape)),
                f"{whole[0] / whole[1]:.3f} ({1e3 * whole[1]:.0f} ms)",
                f"{1 + (arithmetic[0] - arithmetic[1]) / whole[1]:.3f}",
                " / ".join(f"{1e3 * seconds:.2f}" for seconds in (*arithmetic, floor)),
                f"{traffic(shape):.1f} / {1 + 1 / COMPONENTS:.1f}",
                f"{(first + last) / (plain + other):.3f} ({500 * (plain + other):.0f} ms)",
                f"{more / less:.4f}",
            )
        )
    print_table(
        f"DiT-B, K = {COMPONENTS}, gm-ode 2 with {SUBSTEPS} sub-steps, batch {options.batch} on {device}, "
        f"copies at {bandwidth / 1e9:.1f} GB/s",
        (
            "latents",
            "gm-ode / euler",
            "by arithmetic",
            "ms: gm-ode / euler / floor",
            "bytes: gm-ode / floor",
            "gm-kl / fm",
            "by FLOPs",
        ),
        rows,
    )
    print(f"memory of the loss at 768 x 16 x 16, batch {options.memory_batch}: {memory:.2f} times the means")


if __name__ == "__main__":
    main()
