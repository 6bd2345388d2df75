from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from gmtool.errors import MachineError, UserError
from gmtool.flow.source import ModeStatistics
from gmtool.nn.build import build_network
from gmtool.nn.dit import DiTArchitecture
from gmtool.settings import changed, make
from gmtool.stages.train.config import TrainConfig
from gmtool.training import step as step_module
from gmtool.training.micro_batch import choose_micro_batch, divisors, largest_that_fits
from gmtool.training.state import TrainState, make_state
from gmtool.training.step import Stepper, StepResult
from gmtool.training.task import Batch

CPU = torch.device("cpu")
PLAIN = make(
    TrainConfig,
    {"lr": 1e-2, "warmup": 0, "time_shift": 1.0, "source": "gaussian", "coupling": "independent", "condition": "class"},
)
TRANSPORT = changed(PLAIN, {"source": "gmm", "coupling": "batch-ot"})
MIXTURE = changed(PLAIN, {"objective": "gm-kl", "components": 2, "spectral": 1})
UNION = changed(PLAIN, {"objective": "gm-kl", "components": 2, "source": "gmm", "coupling": "mode"})


def subject(config: TrainConfig) -> TrainState:
    architecture = DiTArchitecture(
        (2, 2, 2),
        depth=1,
        width=16,
        heads=2,
        classes=3,
        modes=2 if config.union else 0,
        components=config.components if config.mixture else 0,
        spectral=config.spectral,
    )
    return make_state(build_network(architecture, 0), config)


def batch(count: int) -> Batch:
    draw = torch.Generator().manual_seed(3)

    def normal() -> Tensor:
        return torch.randn(count, 2, 2, 2, generator=draw)

    labels = torch.arange(count)
    return Batch(normal(), labels % 3, labels % 2, ModeStatistics(normal(), normal().abs() + 0.5))


def step(config: TrainConfig, size: int | None) -> tuple[StepResult, TrainState]:
    trainee = subject(config)
    return Stepper(config, trainee, micro_batch=size).take(batch(12), 0, 0), trainee


@pytest.mark.parametrize("config", [PLAIN, TRANSPORT, MIXTURE, UNION], ids=["fm", "transport", "mixture", "union"])
@pytest.mark.parametrize("size", [1, 4, 6])
def test_a_step_in_parts_is_the_step(config: TrainConfig, size: int) -> None:
    """The same losses of the same numbers, and the same gradient, to rounding."""
    whole, first = step(config, None)
    parts, second = step(config, size)
    torch.testing.assert_close(parts.loss, whole.loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parts.quarters, whole.quarters, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(parts.norm, whole.norm, atol=1e-6, rtol=1e-5)
    assert whole.norm > 1e-3
    for one, two in zip(first.network.parameters(), second.network.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, atol=1e-6, rtol=1e-4)


def test_all_micro_batches_but_the_last_are_held_back() -> None:
    """The wrapper of several processes exchanges gradients once a step."""
    held: list[bool] = []
    now = [False]

    class Hold:
        def __enter__(self) -> None:
            now[0] = True

        def __exit__(self, *_: object) -> None:
            now[0] = False

    trainee = subject(PLAIN)

    def forward(*arguments: object) -> object:
        held.append(now[0])
        return trainee.network(*arguments)

    Stepper(PLAIN, changed(trainee, {"forward": forward, "hold": Hold}), micro_batch=4).take(batch(12), 0, 0)
    assert held == [True, True, False]


def of_size(limit: int, seen: list[int]):
    """A loss for which more than ``limit`` data at once are too many."""
    real = step_module.training_loss

    def limited(network: object, part: Batch, *others: object) -> Tensor:
        seen.append(len(part.x))
        if len(part.x) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return real(network, part, *others)

    return limited


@pytest.mark.parametrize("config", [PLAIN, UNION], ids=["fm", "union"])
@pytest.mark.parametrize(("limit", "found"), [(12, 12), (11, 6), (5, 4), (1, 1)])
def test_auto_takes_the_largest_that_fits(
    monkeypatch: pytest.MonkeyPatch, config: TrainConfig, limit: int, found: int
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(step_module, "training_loss", of_size(limit, seen))
    stepper = Stepper(config, subject(config), nullcontext)
    before = {name: each.clone() for name, each in stepper.trainee.network.state_dict().items()}
    assert largest_that_fits(stepper, 12, CPU) == found
    assert set(seen) == {each for each in divisors(12) if each >= found}
    assert all(each.grad is None for each in stepper.trainee.network.parameters())
    assert all(torch.equal(each, before[name]) for name, each in stepper.trainee.network.state_dict().items())
    assert stepper.trainee.optimizer.state() == {}


def test_a_model_that_never_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "training_loss", of_size(0, []))
    with pytest.raises(MachineError, match="one image a time does not fit on the GPU: take a smaller --model"):
        largest_that_fits(Stepper(PLAIN, subject(PLAIN)), 12, CPU)


def test_other_errors_of_a_trial_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Tensor:
        raise RuntimeError("another")

    monkeypatch.setattr(step_module, "training_loss", broken)
    with pytest.raises(RuntimeError, match="another"):
        largest_that_fits(Stepper(PLAIN, subject(PLAIN)), 12, CPU)


@pytest.mark.parametrize(("size", "words"), [(12, "--micro-batch 12: try --micro-batch 6"), (1, "a smaller --model")])
def test_out_of_memory_names_the_micro_batch_to_try(monkeypatch: pytest.MonkeyPatch, size: int, words: str) -> None:
    monkeypatch.setattr(step_module, "training_loss", of_size(0, []))
    with pytest.raises(MachineError, match=words):
        Stepper(PLAIN, subject(PLAIN), micro_batch=size).take(batch(12), 0, 0)


def test_what_is_asked_is_taken() -> None:
    stepper = Stepper(PLAIN, subject(PLAIN))
    assert choose_micro_batch(stepper, PLAIN, 12, CPU) == 12
    assert choose_micro_batch(stepper, changed(PLAIN, {"micro_batch": "3"}), 12, CPU) == 3
    with pytest.raises(UserError, match="--micro-batch 5 does not divide the 12 images of a step: take 4"):
        choose_micro_batch(stepper, changed(PLAIN, {"micro_batch": "5"}), 12, CPU)
    with pytest.raises(UserError, match="--micro-batch 99 does not divide the 12 images of a step: take 12"):
        choose_micro_batch(stepper, changed(PLAIN, {"micro_batch": "99"}), 12, CPU)


@pytest.mark.parametrize("word", ["0", "-4", "many", "2.5", ""])
def test_words_that_are_no_micro_batch(word: str) -> None:
    with pytest.raises(UserError, match="--micro-batch is a number of images or auto"):
        make(TrainConfig, {"micro_batch": word})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_auto_fits_on_the_gpu() -> None:
    device = torch.device("cuda")
    config = changed(PLAIN, {"condition": "none"})
    network = build_network(DiTArchitecture((4, 16, 16), depth=12, width=768, heads=12), 0).to(device)
    stepper = Stepper(config, make_state(network, config))
    found = largest_that_fits(stepper, 2048, device)
    assert 1 <= found < 2048
    taken = changed(stepper, {"micro_batch": found}).take(Batch(torch.randn(2048, 4, 16, 16, device=device)), 0, 0)
    assert not taken.skipped
