"""Training and sampling on a pretended GPU: nothing of two devices meets, a step waits for nothing, the numbers are the
CPU's. See `pretend_cuda`.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretend_cuda import Gpu, WrongDevice, pretend_cuda
from small import Small
from stepping import method_for, stepper_for

from gmtool.artifacts.gmm import open_gmm
from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.run import LatentStatistics, latent_statistics
from gmtool.data.latent_loader import LatentBatch
from gmtool.data.mode_statistics import ModeInputs, ModeTable
from gmtool.errors import is_out_of_memory
from gmtool.flow.method import union
from gmtool.flow.source import ModeMixture, ModeStatistics
from gmtool.mixture.diagonal import DiagonalMixture, ModePosterior
from gmtool.nn.build import build_network
from gmtool.nn.dit import DiTArchitecture
from gmtool.progress import Progress
from gmtool.runtime import compute_dtype, resolve_device
from gmtool.sampling.model import TrainedModel
from gmtool.sampling.plan import make_plan
from gmtool.sampling.sampler import generate
from gmtool.sampling.settings import SamplingSettings
from gmtool.settings import make
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.run import train
from gmtool.streams import generator
from gmtool.training import adamw8bit
from gmtool.training.batches import BatchBuilder, FreshAssignments, ModeDraws, StoredAssignments
from gmtool.training.checkpoint import list_checkpoints
from gmtool.training.micro_batch import choose_micro_batch
from gmtool.training.step import Stepper
from gmtool.training.task import Batch, each_tensor

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
SHAPE, CLASSES, MODES = (2, 2, 2), 3, 4
BASE = DiTArchitecture(SHAPE, depth=1, width=16, heads=2, classes=CLASSES)
PLAIN: dict[str, Any] = {"lr": 1e-2, "warmup": 0, "time_shift": 1.0}
UNION = {**PLAIN, "objective": "gm-kl", "source": "gmm"}
CASES: dict[str, tuple[dict[str, Any], DiTArchitecture]] = {
    "fm": (PLAIN, BASE),
    "mm-fm": ({**PLAIN, "objective": "mm-fm"}, replace(BASE, classes=0)),
    "mode means": (
        {**PLAIN, "condition": "mode", "mode_mean": True},
        replace(BASE, classes=0, modes=MODES, context=SHAPE[0]),
    ),
    "gm-kl": ({**PLAIN, "objective": "gm-kl"}, replace(BASE, components=2)),
    "spectral": ({**PLAIN, "objective": "gm-kl", "spectral": 1}, replace(BASE, components=2, spectral=1)),
    "union": (UNION, replace(BASE, components=2, modes=MODES, context=SHAPE[0])),
    "muon, averages": ({**PLAIN, "optimizer": "muon", "ema": (0.9, 0.99), "ema_power": (0.1,)}, BASE),
    "adamw8bit": ({**PLAIN, "optimizer": "adamw8bit"}, BASE),
}


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # which torchao does, where there is a GPU
    monkeypatch.setattr(adamw8bit, "SMALLEST", 1 << 40)  # its tensors in 8 bits ask for a driver
    with pretend_cuda() as devices:
        yield devices


def stepper_of(case: str, device: torch.device, micro_batch: int | None = None) -> Stepper:
    settings, architecture = CASES[case]
    return stepper_for(build_network(architecture, 0).to(device), settings, micro_batch)


def batch(count: int, device: torch.device) -> Batch:
    draw = torch.Generator().manual_seed(3)
    x, mean, width = (torch.randn(count, *SHAPE, generator=draw) for _ in range(3))
    labels = torch.arange(count)
    made = Batch(x, labels % CLASSES, labels % MODES, ModeStatistics(mean, width.abs() + 0.5), mean)
    return each_tensor(made, lambda leaf: leaf.to(device))


def test_the_pretence_refuses_what_a_gpu_refuses() -> None:
    x = torch.ones(3, device="cuda")
    for wrong in (
        lambda: x + torch.ones(3),
        lambda: x.numpy(),
        lambda: torch.cat([x, torch.ones(3)]),
        lambda: torch.ones(3)[torch.tensor([0], device="cuda")],
        lambda: torch.randn(3, generator=torch.Generator(), device="cuda"),
    ):
        with pytest.raises(WrongDevice):
            wrong()
    y = (x[torch.tensor([0, 2])] * torch.tensor(2.0)).requires_grad_()
    (y * y).sum().backward()
    assert isinstance(y.grad, Gpu) and y.grad.tolist() == [4.0, 4.0]


def test_the_pretence_counts_what_waits(waits: Counter[str]) -> None:
    x = torch.ones(3).to(CUDA, non_blocking=True)
    assert not waits
    for waiting in (lambda: x.sum().item(), lambda: x.cpu(), lambda: torch.ones(3).to(CUDA), lambda: x.nonzero()):
        before = waits.total()
        waiting()
        assert waits.total() > before


def test_auto_is_the_gpu_in_bfloat16() -> None:
    assert resolve_device("auto") == CUDA and compute_dtype("auto", CUDA) == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_largest_micro_batch_is_found_by_trying(case: str) -> None:
    assert choose_micro_batch(stepper_of(case, CUDA), "auto", 8, CUDA) == 8


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.slow
def test_a_step_is_that_of_the_cpu_and_waits_for_nothing(
    case: str, micro_batch: int | None, waits: Counter[str]
) -> None:
    expected = stepper_of(case, CPU, micro_batch)
    first = [expected.take(batch(6, CPU), step, 0) for step in range(2)]
    stepper, given = stepper_of(case, CUDA, micro_batch), batch(6, CUDA)
    waits.clear()
    second = [stepper.take(given, step, 0) for step in range(2)]
    assert not waits
    for one, two in zip(first, second, strict=True):
        assert two.record() == pytest.approx(one.record(), rel=1e-4)
    for one, two in zip(expected.state.network.parameters(), stepper.state.network.parameters(), strict=True):
        assert isinstance(two.data, Gpu)
        torch.testing.assert_close(two.detach().cpu(), one.detach(), atol=1e-5, rtol=1e-4)


def mixture_of(device: torch.device) -> ModeMixture:
    draws = generator("mixture")
    means, stds = torch.randn(MODES, *SHAPE, generator=draws), torch.rand(MODES, *SHAPE, generator=draws) + 0.5
    return ModeMixture(torch.full((MODES,), 1 / MODES), means.to(device), stds.to(device))


def test_batches_are_made_without_waiting(waits: Counter[str]) -> None:
    draw, by_device = torch.Generator().manual_seed(0), {}
    latents = torch.randn(12, *SHAPE, generator=draw)
    stored = StoredAssignments(torch.arange(12)[:, None] % MODES, torch.ones(12, 1))
    modes = ModeDraws(stored, torch.full((MODES,), 1 / MODES))
    for device in (CPU, CUDA):
        statistics = LatentStatistics(torch.full(SHAPE, 0.5), torch.full(SHAPE, 2.0)).to(device)
        table: Any = mixture_of(device)
        inputs = ModeInputs(union(), table, mode_mean=True)
        builder = BatchBuilder(np.arange(12) % CLASSES, CLASSES, modes, inputs, statistics, device)
        raw = [LatentBatch(np.arange(12)[rows], slice(None), latents[rows]) for rows in (slice(0, 6), slice(6, 12))]
        waits.clear()
        by_device[device.type] = list(builder.batches(iter(raw), 0, 0))
        assert not waits
    for one, two in zip(by_device["cpu"], by_device["cuda"], strict=True):
        assert all(tensor.is_cuda for tensor in (two.x, two.classes, two.modes, two.source_modes.std, two.mode_mean))
        back = each_tensor(two, lambda tensor: tensor.cpu())
        for name in ("x", "classes", "modes", "mode_mean"):
            torch.testing.assert_close(getattr(back, name), getattr(one, name))


def test_modes_of_fresh_images_are_drawn_without_waiting(waits: Counter[str]) -> None:
    """Where their descriptors are, by the same numbers."""
    draw, drawn = torch.Generator().manual_seed(0), {}
    means, descriptors = torch.randn(MODES, 5, generator=draw).double(), torch.randn(12, 5, generator=draw)
    for device in (CPU, CUDA):
        mixture = DiagonalMixture(*(part.to(device) for part in (torch.full((MODES,), 1 / MODES), means, means**0)))
        posterior = ModePosterior(mixture, 2)
        fresh = ModeDraws(FreshAssignments(posterior, torch.zeros(5, device=device)), torch.full((MODES,), 1 / MODES))
        batch = LatentBatch(np.arange(12), slice(3, 9), torch.zeros(6), descriptors[3:9].to(device))
        waits.clear()
        drawn[device.type], _ = fresh.draw(batch, torch.Generator().manual_seed(1))
        assert not waits
    assert drawn["cuda"].is_cuda
    assert torch.equal(drawn["cuda"].cpu(), drawn["cpu"])


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
@pytest.mark.parametrize("memory", [8 << 30, 0], ids=["on the GPU", "beside it"])
def test_statistics_of_modes_come_without_waiting(
    small: Small, name: str, memory: int, waits: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (memory, memory))
    picked = torch.tensor([2, 0, 2, 3])
    with open_latents(small.latents("classes")) as latents, open_gmm(small.gmm("classes")) as gmm:
        statistics = latent_statistics(latents)
        expected = ModeTable(gmm, statistics, CPU, whitened=True).at(picked)
        table = ModeTable(gmm, statistics, torch.device(name), whitened=True)
        waits.clear()
        looked_up = table.at(picked)
        assert not waits
        assert looked_up.mean.is_cuda and table.at(picked.to("cuda")).std.is_cuda
        torch.testing.assert_close(looked_up.mean.cpu(), expected.mean)
        torch.testing.assert_close(looked_up.std.cpu(), expected.std)


@pytest.mark.parametrize("solver", ["gm-ode", "gm-sde", "euler"])
def test_samples_are_those_of_the_cpu(solver: str) -> None:
    settings, architecture = CASES["union"]
    record, by_device = method_for(architecture, settings), {}
    for device in (CPU, CUDA):
        network = build_network(architecture, 0)
        for parameter in network.parameters():  # a new network's head is zero
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
        weights = torch.full((CLASSES, MODES), 1 / MODES)
        statistics = LatentStatistics(torch.full(SHAPE, 0.5), torch.full(SHAPE, 2.0), weights).to(device)
        mixture: Any = mixture_of(device)
        model = TrainedModel.of(record, network.to(device).eval(), statistics, mixture, device, torch.float32)
        plan = make_plan(SamplingSettings(steps=3, solver=solver), record, spectral=0, seed=0)
        by_device[device.type] = generate(model, plan, range(4), torch.arange(4) % CLASSES)
    assert by_device["cuda"].is_cuda
    torch.testing.assert_close(by_device["cuda"].cpu(), by_device["cpu"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=lambda error: f"{type(error).__name__} {str(error)[:20]}",
)
def test_out_of_memory_makes_the_micro_batch_smaller(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_out_of_memory(error)
    stepper = stepper_of("union", CUDA)
    forward = stepper.state.forward

    def small_only(x: torch.Tensor, *rest: Any) -> Any:
        if len(x) > 2:
            raise error
        return forward(x, *rest)

    limited = replace(stepper, state=replace(stepper.state, forward=small_only))
    assert choose_micro_batch(limited, "auto", 8, CUDA) == 2


def test_another_error_is_not_out_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, UNION], ids=["fm", "union"])
def test_a_whole_run_is_trained(small: Small, tmp_path: Path, settings: dict[str, Any]) -> None:
    """The command's way from the latents to checkpoints, previews, scores and the pace against the device's peak."""
    quick = {"steps": 2, "batch_size": 8, "save_every": 1, "preview_every": 1, "eval_every": 2, "eval_num": 8}
    quick |= {"model": "tiny", "precision": "float32", "tensorboard": False, **settings}
    for name in ("cuda", "cpu"):
        train(small.latents("classes"), tmp_path / name, make(TrainConfig, {**quick, "device": name}), Progress())
    on_gpu, expected = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("cuda", "cpu")
    )
    assert [record.keys() for record in on_gpu] == [record.keys() for record in expected]
    assert on_gpu[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-4)
    assert len(list((tmp_path / "cuda/previews").iterdir())) == 2
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "cuda/checkpoints")] == [1, 2]
