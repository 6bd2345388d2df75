"""What runs otherwise on a GPU than on a CPU: precision, random numbers, fused kernels, a resumed run, EM."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import Small
from stepping import stepper_for

from gmtool.mixture.diagonal import DiagonalMixture
from gmtool.mixture.em import Blocks, block_rows, expected_moments, maximise
from gmtool.nn.build import build_network
from gmtool.nn.dit import DiTArchitecture
from gmtool.progress import Progress
from gmtool.runtime import compute_dtype, resolve_device
from gmtool.settings import changed, make
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.run import train
from gmtool.streams import generator
from gmtool.training.checkpoint import MODEL, list_checkpoints
from gmtool.training.task import Batch, each_tensor

pytestmark = pytest.mark.gpu

CONFIG = make(
    TrainConfig,
    {
        "steps": 6,
        "batch_size": 8,
        "model": "tiny",
        "save_every": 3,
        "preview_every": 0,
        "tensorboard": False,
        "device": "cuda",
    },
)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(list_checkpoints(run / "checkpoints")[-1].path / MODEL)


def test_auto_is_the_gpu_in_bfloat16() -> None:
    device = resolve_device("auto")
    assert device.type == "cuda"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        assert compute_dtype("auto", device) == torch.bfloat16


def test_a_generator_of_the_gpu_repeats_itself() -> None:
    one, two, other = (
        torch.randn(1000, generator=generator(*key, device="cuda"), device="cuda")
        for key in ((1, "a"), (1, "a"), (2, "a"))
    )
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_a_fused_step_in_float32_is_that_of_the_cpu() -> None:
    """From the same numbers: those of the GPU's generator differ, so both take the CPU's."""
    by_device = {}
    architecture = DiTArchitecture((4, 4, 4), depth=2, width=32, heads=2)
    for device in ("cpu", "cuda"):
        stepper = stepper_for(build_network(architecture, 0).to(device), {"lr": 1e-3, "time_shift": 1.0})
        x = torch.randn(16, 4, 4, 4, generator=torch.Generator().manual_seed(1))
        prepared = stepper.task.prepare(Batch(x), stepper.task.draw(16, generator(0)))
        prepared = each_tensor(prepared, lambda value, device=device: value.to(device))
        stepper._accumulate(prepared, torch.ones(16, device=device))
        stepper.state.optimizer.step(1e-3, torch.tensor(False, device=device))
        by_device[device] = {
            name: parameter.detach().cpu() for name, parameter in stepper.state.network.named_parameters()
        }
    for name, value in by_device["cpu"].items():
        torch.testing.assert_close(by_device["cuda"][name], value, atol=2e-5, rtol=1e-3, msg=name)


def test_a_loss_in_bfloat16_is_near_that_in_float32_and_float32_itself(small: Small, tmp_path: Path) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        run = tmp_path / precision
        train(small.latents("classes"), run, changed(CONFIG, {"precision": precision}), Progress())
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses[precision] = [record["loss"] for record in lines if "loss" in record]
        assert all(tensor.dtype == torch.float32 for tensor in weights(run).values())
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.05)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_is_the_uninterrupted_one(small: Small, tmp_path: Path, workers: int) -> None:
    """With worker processes the latents pass through pinned memory."""
    config = changed(CONFIG, {"precision": "float32", "workers": workers})
    train(small.latents("classes"), tmp_path / "whole", config, Progress())
    train(small.latents("classes"), tmp_path / "parts", changed(config, {"steps": 3}), Progress())
    train(small.latents("classes"), tmp_path / "parts", config, Progress())
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name, value in whole.items():
        # kernels that add in no fixed order may differ by rounding
        torch.testing.assert_close(parts[name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_an_iteration_of_em_is_that_of_the_cpu() -> None:
    draws = np.random.default_rng(0)
    data = draws.standard_normal((2000, 6)).astype(np.float32)
    by_device = {}
    for name in ("cpu", "cuda"):
        device = torch.device(name)
        means = torch.from_numpy(data[:5]).double().to(device)
        mixture = DiagonalMixture(torch.full((5,), 0.2, dtype=torch.float64, device=device), means, 1 + 0 * means)
        moments = expected_moments(Blocks(data, block_rows(5, device), device), mixture)
        by_device[name] = (moments.log_likelihood, maximise(moments, mixture, 1e-6))
    assert by_device["cuda"][0] == pytest.approx(by_device["cpu"][0], rel=1e-5)
    for part in ("weights", "means", "variances"):
        one, two = (getattr(by_device[name][1], part).cpu() for name in ("cpu", "cuda"))
        torch.testing.assert_close(two, one, atol=1e-4, rtol=1e-3)
