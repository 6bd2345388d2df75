"""What students cost: rolls of a policy, and a step of distillation, each as a ratio within this run.

- a roll of 128 sub-steps at 768 x 16 x 16, K = 32, one sample, against a forward pass of a DiT-B, and against the same
  walk over K x C numbers (`DirectPosterior`, the definition, of which 4 sub-steps are timed);
- the same at 4 x 32 x 32, K = 32, 8 samples, against that walk compiled by TorchScript, as pi-Flow's is;
- a step of distillation against its floor, a forward and backward pass of the student and two forward passes of the
  teacher.

    python examples/benchmarks/students.py            # minutes on one idle core; the median of alternating repetitions
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from gmtool.console import print_table
from gmtool.flow.imitation import Imitation, Segments
from gmtool.flow.method import fm, student
from gmtool.flow.model import velocity_model
from gmtool.flow.policy import POLICIES, MixturePolicy, Segment, roll_grid
from gmtool.flow.posterior import DirectPosterior
from gmtool.mixture.gaussian_mixture import GaussianMixture, from_rows
from gmtool.nn.architecture import Conditions
from gmtool.nn.build import build_network
from gmtool.nn.dit import DiTArchitecture

COMPONENTS, SUBSTEPS = 32, 128
DIT_B = (12, 768, 12)
FEW = 4
"""Sub-steps of the walk over K x C numbers that are timed where it is slow."""


def seconds(repetitions: int, *work: Callable[[], object]) -> list[float]:
    """The median processor time of each, taken in turn so that what else the machine does falls on all alike."""
    all_times: list[list[float]] = [[] for _ in work]
    for function in work:
        function()
    for _ in range(repetitions):
        for times, function in zip(all_times, work, strict=True):
            start = time.process_time()
            function()
            times.append(time.process_time() - start)
    return [median(times) for times in all_times]


def policy_of(batch: int, shape: tuple[int, int, int]) -> MixturePolicy:
    """A policy at the source, of random means."""
    channels, *size = shape
    means = from_rows(torch.randn(batch, size[0] * size[1], COMPONENTS, channels), torch.Size(size))
    log_weights = torch.log_softmax(torch.randn(batch, COMPONENTS, 1, *size), 1)
    u = GaussianMixture(means, log_weights, torch.full((batch, 1, 1, 1, 1), 0.1))
    x, ones = torch.randn(batch, *shape), torch.ones(batch)
    made = POLICIES["gm"](u, x, Segment(ones, ones))
    assert isinstance(made, MixturePolicy)
    return made


def walk_over_numbers(policy: MixturePolicy, substeps: int) -> Tensor:
    """The first sub-steps of a roll, the mean at each from all K x C numbers."""
    direct, x = DirectPosterior(policy.mixture, policy.x_t, 1.0), policy.x_t
    for r, after in itertools.islice(itertools.pairwise(torch.linspace(1, 0, SUBSTEPS + 1).tolist()), substeps):
        x = after / r * x + (1 - after / r) * direct.mean_at(x, r)
    return x


@torch.jit.script  # as pi-Flow compiles its own
def _mean_at(x: Tensor, r: float, means: Tensor, log_weights: Tensor, variance: Tensor) -> Tensor:
    """E[x | x_r] for a mixture predicted at t = 1, where the factor of x_t is flat."""
    gained = (1 - r) / (r * r)
    precision = gained * (1 - r)
    shift = (gained * x).unsqueeze(1)
    growth = 1 + variance * precision
    logits = log_weights + (means * (shift - 0.5 * precision * means)).sum(2, keepdim=True) / growth
    return (torch.softmax(logits, 1) * (means + variance * shift) / growth).sum(1)


def compiled_walk(policy: MixturePolicy) -> Tensor:
    """All sub-steps of a roll over K x C numbers, compiled."""
    mixture, x = policy.mixture, policy.x_t
    for r, after in itertools.pairwise(torch.linspace(1, 0, SUBSTEPS + 1).tolist()):
        x = after / r * x + (1 - after / r) * _mean_at(x, r, mixture.means, mixture.log_weights, mixture.variance)
    return x


def rolls(repetitions: int) -> list[tuple[str, str, str]]:
    """The rows on rolls: what, against what, and the ratio."""
    grid = roll_grid(torch.ones(1), torch.zeros(1), 1.0, SUBSTEPS)
    wide, shape = policy_of(1, (768, 16, 16)), (768, 16, 16)
    network = build_network(DiTArchitecture(shape, *DIT_B), 0).eval()
    roll, forward, walk = seconds(
        repetitions,
        lambda: wide.roll(wide.x_t, grid),
        lambda: network(wide.x_t, torch.ones(1), Conditions()),
        lambda: walk_over_numbers(wide, FEW),
    )
    narrow = policy_of(8, (4, 32, 32))
    torch.testing.assert_close(narrow.roll(narrow.x_t, grid.expand(-1, 8)), compiled_walk(narrow), atol=1e-3, rtol=0)
    short, compiled = seconds(
        repetitions, lambda: narrow.roll(narrow.x_t, grid.expand(-1, 8)), lambda: compiled_walk(narrow)
    )
    walk *= SUBSTEPS / FEW
    return [
        (
            f"roll at 768 x 16 x 16, {1e3 * roll:.0f} ms",
            f"DiT-B forward, {1e3 * forward:.0f} ms",
            f"{roll / forward:.3f}",
        ),
        (f"walk over K x C numbers, {walk:.1f} s", "that roll", f"{walk / roll:.0f}"),
        (
            f"compiled walk at 4 x 32 x 32, {1e3 * compiled:.0f} ms",
            f"roll, {1e3 * short:.0f} ms",
            f"{compiled / short:.2f}",
        ),
    ]


def distillation(repetitions: int, shape: tuple[int, int, int], patch: int, batch: int) -> tuple[str, str, str]:
    """A step of a DiT-B's student against its floor."""
    taught = DiTArchitecture(shape, *DIT_B, patch=patch)
    teacher = build_network(taught, 0).eval().requires_grad_(False)
    network = build_network(DiTArchitecture(shape, *DIT_B, patch=patch, components=COMPONENTS), 0)
    method = student(fm(), Imitation(Segments(1), components=COMPONENTS))
    stream = torch.Generator().manual_seed(0)
    x, t = torch.randn(batch, *shape), torch.ones(batch)

    def ask(x_t: Tensor, time: Tensor) -> Tensor:
        with torch.no_grad():
            velocity = teacher(x_t, time, Conditions())
        assert isinstance(velocity, Tensor)
        return velocity

    def predict(x_t: Tensor, time: Tensor) -> Tensor | GaussianMixture:
        return network(x_t, time, Conditions())

    def step() -> None:
        draws = method.draw(batch, shape, stream)
        loss = method.taught(velocity_model(ask)).loss(predict, method.pair(x, draws.noise), draws)
        loss.mean().backward()

    def floor() -> None:
        u = predict(x, t)
        assert isinstance(u, GaussianMixture)
        (u.means.mean() + u.log_weights.mean() + u.variance.mean()).backward()
        ask(x, t)
        ask(x, t)

    whole, least = seconds(repetitions, step, floor)
    words = " x ".join(map(str, shape))
    return f"step at {words}, {whole:.2f} s", f"its passes alone, {least:.2f} s", f"{whole / least:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--part", choices=("rolls", "steps"), help="instead of both")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    if options.part != "steps":
        with torch.no_grad():
            rows += rolls(options.repetitions)
    if options.part != "rolls":
        rows.append(distillation(options.repetitions, (4, 32, 32), 2, 1))
        rows.append(distillation(options.repetitions, (768, 16, 16), 1, 1))
    print_table("the cost of students, on one thread", ("what", "against", "ratio"), rows)


if __name__ == "__main__":
    main()
