import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stepping import Losses, small_stepper, stepper_for, with_losses
from torch import Tensor

from gmtool.errors import UserError
from gmtool.nn.build import build_network
from gmtool.nn.dit import DiTArchitecture
from gmtool.progress import Progress
from gmtool.settings import make
from gmtool.stages.train.config import TrainConfig
from gmtool.training.checkpoint import MODEL, OPTIMIZER, Position, list_checkpoints, remove_old, save_checkpoint
from gmtool.training.logging import MetricsFile
from gmtool.training.loop import DivergedError, Event, Loop
from gmtool.training.settings import OptimizerSettings
from gmtool.training.step import Stepper
from gmtool.training.task import Batch, Forward, Prepared

SETTINGS: dict[str, Any] = {"steps": 6, "lr": 1e-2, "warmup": 0, "save_every": 2, "preview_every": 0}
ARCHITECTURE = DiTArchitecture((2, 2, 2), depth=1, width=16, heads=2)
START = Position()


def new_stepper(settings: Mapping[str, Any] = SETTINGS) -> Stepper:
    return small_stepper(ARCHITECTURE, settings)


def batches(count: int) -> list[Batch]:
    draw = torch.Generator().manual_seed(0)
    return [Batch(torch.randn(8, 2, 2, 2, generator=draw)) for _ in range(count)]


def train(
    folder: Path,
    data: list[Batch],
    settings: Mapping[str, Any] = SETTINGS,
    stepper: Stepper | None = None,
    start: Position = START,
    previews: list[int] | None = None,
    progress: Progress | None = None,
) -> None:
    """Run the loop, with all that it leaves in ``folder``."""
    config, stepper, checkpoints = make(TrainConfig, settings), stepper or new_stepper(settings), folder / "checkpoints"

    def save(position: Position) -> None:
        save_checkpoint(checkpoints, position, stepper.state.tensors())
        remove_old(checkpoints, config.loop.keep)

    events = [Event(config.logging.preview_every, (previews if previews is not None else []).append)]
    loop = Loop(config.loop, stepper, save, [MetricsFile(folder / "metrics.jsonl")], events)
    loop.run(data, start, 0, progress or Progress())


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Counter(Progress):
    def __init__(self) -> None:
        self.began: tuple[int, int] = (0, 0)
        self.skipped: list[float | None] = []
        self.count = 0

    def begin(self, task: str, total: int, unit: str, done: int = 0) -> None:
        self.began = (total, done)

    def advance(self, count: int = 1, figures: Mapping[str, float] | None = None) -> None:
        self.count += count
        self.skipped.append((figures or {}).get("skipped"))


def test_the_average_is_the_recursion(tmp_path: Path) -> None:
    config = {**SETTINGS, "ema": (0.3,)}
    stepper = new_stepper(config)
    subject = stepper.state
    names = [name for name, _ in subject.network.named_parameters()]
    expected = {name: parameter.detach().clone() for name, parameter in subject.network.named_parameters()}
    for step, batch in enumerate(batches(6)):
        train(tmp_path, [batch], {**config, "steps": step + 1}, stepper, Position(step))
        decay = min(0.3, (1 + step) / (10 + step))
        for name, parameter in subject.network.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()
    moved = dict(subject.network.named_parameters())["head.linear.weight"]
    assert moved.abs().max() > 1e-3  # training did something
    for name, parameter in zip(names, subject.averages[0].network.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected[name], atol=1e-6, rtol=1e-5)


def test_lines_checkpoints_previews_and_progress(tmp_path: Path) -> None:
    seen: list[int] = []
    heard = Counter()
    config = {**SETTINGS, "steps": 5, "warmup": 4, "preview_every": 3}
    train(tmp_path, batches(5), config, previews=seen, progress=heard)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]
    assert [line["lr"] for line in lines(tmp_path)] == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])
    names = {"step", "loss", "grad_norm", "lr", "skipped"}
    assert all(names <= set(line) <= names | {f"loss_q{part}" for part in range(1, 5)} for line in lines(tmp_path))
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "checkpoints")] == [4, 5]
    assert seen == [3, 5]
    assert (heard.began, heard.count) == ((5, 0), 5)


def test_resumed_metrics_drop_later_and_cut_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": n, "loss": 1.0}) + "\n" for n in range(1, 6)) + '{"step": 6, "lo')
    metrics = MetricsFile(path)
    metrics.begin(3)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    metrics.write([{"step": 4, "loss": 2.0}])
    assert lines(tmp_path)[-1] == {"step": 4, "loss": 2.0}
    metrics.begin(0)
    assert path.read_text() == ""


def test_clipping_bounds_the_step_and_the_norm_is_that_before(tmp_path: Path) -> None:
    """With one step of AdamW from zero moments the size of the gradient does not matter; of its norm, all is told."""
    norms = {}
    for clip in (0.0, 1e-3, 1e3):
        folder = tmp_path / str(clip)
        folder.mkdir()
        train(folder, batches(1), {**SETTINGS, "steps": 1, "clip": clip})
        norms[clip] = lines(folder)[0]["grad_norm"]
    assert norms[0.0] == norms[1e-3] == norms[1e3] > 1e-2


@pytest.mark.parametrize(("start", "clipped"), [(0, True), (1, True), (2, False)])
def test_clipping_may_begin_at_a_later_step(tmp_path: Path, start: int, clipped: bool) -> None:
    config = {**SETTINGS, "steps": 2, "clip": 1e-3, "clip_from": start}
    stepper = new_stepper(config)
    train(tmp_path, batches(2), config, stepper)
    total = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in stepper.state.network.parameters()))
    assert total == pytest.approx(1e-3, rel=1e-3) if clipped else total > 1e-2


def test_clipping_that_never_begins_is_refused() -> None:
    with pytest.raises(UserError, match="--clip-from has no effect without a --clip"):
        OptimizerSettings(clip=0.0, clip_from=1)


def test_the_gradient_is_clipped(tmp_path: Path) -> None:
    config = {**SETTINGS, "steps": 1, "clip": 1e-3}
    stepper = new_stepper(config)
    train(tmp_path, batches(1), config, stepper)
    total = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in stepper.state.network.parameters()))
    assert total == pytest.approx(1e-3, rel=1e-3)


def spoilt(settings: Mapping[str, Any], steps: set[int], spoil: Callable[[Tensor], Tensor]) -> Stepper:
    """A stepper whose loss is not finite at some steps, counted from 1."""
    calls: list[int] = []

    def alter(losses: Losses, forward: Forward, prepared: Prepared) -> Tensor:
        calls.append(1)
        loss = losses(forward, prepared)
        return spoil(loss) if len(calls) in steps else loss

    return with_losses(new_stepper(settings), alter)


SPOILS = {
    "nan": lambda loss: loss * math.nan,
    "inf": lambda loss: loss * math.inf,
    "gradient": lambda loss: loss + (loss - loss).abs().sqrt(),  # finite itself; the derivative of the root at 0 is not
}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("spoil", SPOILS)
def test_a_step_that_is_not_finite_leaves_weights_and_moments_alone(tmp_path: Path, spoil: str, optimizer: str) -> None:
    config = {**SETTINGS, "steps": 4, "save_every": 1, "keep": 9, "optimizer": optimizer, "weight_decay": 0.1}
    train(tmp_path, batches(4), config, spoilt(config, {1, 3}, SPOILS[spoil]))
    first, second, third, fourth = list_checkpoints(tmp_path / "checkpoints")
    assert [checkpoint.position for checkpoint in (first, second, third, fourth)] == [
        Position(1, 0, 1, 1),
        Position(2, 0, 1, 0),
        Position(3, 0, 2, 1),
        Position(4, 0, 2, 0),
    ]
    network = new_stepper(config).state.network
    assert all(
        torch.equal(tensor, network.state_dict()[name]) for name, tensor in load_file(first.path / MODEL).items()
    )
    for name in (MODEL, OPTIMIZER):
        before, after = load_file(second.path / name), load_file(third.path / name)
        assert before.keys() == after.keys()
        assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
        assert any(not torch.equal(tensor, after[key]) for key, tensor in load_file(fourth.path / name).items())
    written = lines(tmp_path)
    assert [line["skipped"] for line in written] == [1, 1, 2, 2]
    assert ["grad_norm" in line for line in written] == [False, True, False, True]
    assert all(math.isfinite(value) for line in written for value in line.values())


def test_many_such_steps_in_a_row_end_the_loop(tmp_path: Path) -> None:
    config, heard = {**SETTINGS, "steps": 8, "skip_limit": 3}, Counter()
    with pytest.raises(DivergedError) as caught:
        train(tmp_path, batches(8), config, spoilt(config, {2, 4, 5, 6}, SPOILS["nan"]), progress=heard)
    assert heard.skipped == [None, 1, 1, 2, 3]
    assert caught.value.position == Position(6, 0, 4, 3)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert [checkpoint.position for checkpoint in list_checkpoints(tmp_path / "checkpoints")] == [
        Position(2, 0, 1, 1),
        Position(4, 0, 2, 1),
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_never_waits_for_the_gpu(optimizer: str) -> None:
    config = {**SETTINGS, "optimizer": optimizer, "ema_power": (0.1,), "weight_decay": 0.1}
    network = build_network(ARCHITECTURE, 0).cuda()
    stepper = stepper_for(network, config, micro_batch=4)
    data = [Batch(training_batch.x.cuda()) for training_batch in batches(4)]
    stepper.take(data[0], 0, 0)  # what is made on first use may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step, batch in enumerate(data[1:], 1):
            stepper.take(batch, step, 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
