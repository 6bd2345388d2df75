import json
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gmtool.config.train import TrainConfig
from gmtool.errors import UserError
from gmtool.nn.architecture import Architecture
from gmtool.nn.build import build_network
from gmtool.progress import Progress
from gmtool.training import loop as loop_module
from gmtool.training.checkpoint import list_checkpoints
from gmtool.training.loop import Loop, Metrics, Trainee, ema_decay, learning_rate, make_optimizer
from gmtool.training.loss import Batch

CONFIG = TrainConfig(
    steps=6, lr=1e-2, warmup=0, time_shift=1.0, condition="none", source="gaussian", save_every=2, preview_every=0
)


def trainee() -> Trainee:
    network = build_network(Architecture((2, 2, 2), depth=1, width=16, heads=2), 0)
    average = build_network(network.architecture, 0).requires_grad_(False)
    return Trainee(network, average, make_optimizer(network, CONFIG))


def batches(count: int) -> list[Batch]:
    draw = torch.Generator().manual_seed(0)
    return [Batch(torch.randn(8, 2, 2, 2, generator=draw)) for _ in range(count)]


def make_loop(folder: Path, config: TrainConfig = CONFIG, previews: list[int] | None = None) -> Loop:
    seen = previews if previews is not None else []
    return Loop(config, folder / "checkpoints", folder / "metrics.jsonl", nullcontext, seen.append)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Counter(Progress):
    def __init__(self) -> None:
        self.began: tuple[int, int] = (0, 0)
        self.count = 0

    def begin(self, task: str, total: int, unit: str, done: int = 0) -> None:
        self.began = (total, done)

    def advance(self, count: int = 1, figures: object = None) -> None:
        self.count += count


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_learning_rate(schedule: str) -> None:
    config = TrainConfig(lr=0.4, warmup=10, steps=110, schedule=schedule)
    assert [learning_rate(config, step) for step in range(10)] == pytest.approx([0.04 * (n + 1) for n in range(10)])
    middle, late = {"constant": (0.4, 0.4), "linear": (0.2, 0.1), "cosine": (0.2, 0.2 * (1 - math.sqrt(0.5)))}[schedule]
    assert learning_rate(config, 10) == pytest.approx(0.4)
    assert learning_rate(config, 60) == pytest.approx(middle)
    assert learning_rate(config, 85) == pytest.approx(late)
    assert learning_rate(config, 110) == pytest.approx(0.4 if schedule == "constant" else 0, abs=1e-12)


def test_a_warmup_longer_than_the_run() -> None:
    config = TrainConfig(lr=1.0, warmup=100, steps=10, schedule="cosine")
    assert [learning_rate(config, step) for step in (0, 4, 9)] == pytest.approx([0.01, 0.05, 0.1])
    assert learning_rate(replace(config, warmup=0), 0) == 1.0


def test_ema_decay() -> None:
    assert [ema_decay(0.999, step) for step in (0, 8, 98)] == pytest.approx([0.1, 0.5, 99 / 108])
    assert ema_decay(0.999, 10**6) == 0.999
    assert ema_decay(0.0, 5) == 0.0


def test_the_average_is_the_recursion(tmp_path: Path) -> None:
    subject = trainee()
    names = [name for name, _ in subject.network.named_parameters()]
    expected = {name: each.detach().clone() for name, each in subject.network.named_parameters()}
    for step, batch in enumerate(batches(6)):
        make_loop(tmp_path, replace(CONFIG, steps=step + 1, ema=0.3)).run(subject, [batch], step, Progress())
        decay = min(0.3, (1 + step) / (10 + step))
        for name, each in subject.network.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * each.detach()
    moved = dict(subject.network.named_parameters())["head.linear.weight"]
    assert moved.abs().max() > 1e-3  # training did something
    for name, each in zip(names, subject.ema.parameters(), strict=True):
        torch.testing.assert_close(each, expected[name], atol=1e-6, rtol=1e-5)


def test_lines_checkpoints_previews_and_progress(tmp_path: Path) -> None:
    seen: list[int] = []
    heard = Counter()
    config = replace(CONFIG, steps=5, warmup=4, preview_every=3)
    make_loop(tmp_path, config, seen).run(trainee(), batches(5), 0, heard)
    assert [each["step"] for each in lines(tmp_path)] == [1, 2, 3, 4, 5]
    assert [each["lr"] for each in lines(tmp_path)] == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])
    assert all(set(each) == {"step", "loss", "grad_norm", "lr"} for each in lines(tmp_path))
    assert [each.step for each in list_checkpoints(tmp_path / "checkpoints")] == [4, 5]
    assert seen == [3, 5]
    assert (heard.began, heard.count) == ((5, 0), 5)


def test_resumed_metrics_drop_later_and_cut_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": n, "loss": 1.0}) + "\n" for n in range(1, 6)) + '{"step": 6, "lo')
    metrics = Metrics(path, 3)
    assert [each["step"] for each in lines(tmp_path)] == [1, 2, 3]
    metrics.write([{"step": 4, "loss": 2.0}])
    assert lines(tmp_path)[-1] == {"step": 4, "loss": 2.0}
    Metrics(path, 0)
    assert path.read_text() == ""


def test_clipping_bounds_the_step_and_the_norm_is_that_before(tmp_path: Path) -> None:
    """With one step of AdamW from zero moments the size of the gradient does not matter; of its norm, all is told."""
    norms = {}
    for clip in (0.0, 1e-3, 1e3):
        folder = tmp_path / str(clip)
        folder.mkdir()
        make_loop(folder, replace(CONFIG, steps=1, clip=clip)).run(trainee(), batches(1), 0, Progress())
        norms[clip] = lines(folder)[0]["grad_norm"]
    assert norms[0.0] == norms[1e-3] == norms[1e3] > 1e-2


def test_the_gradient_is_clipped(tmp_path: Path) -> None:
    subject = trainee()
    make_loop(tmp_path, replace(CONFIG, steps=1, clip=1e-3)).run(subject, batches(1), 0, Progress())
    total = math.sqrt(sum(float(each.grad.square().sum()) for each in subject.network.parameters()))
    assert total == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("step", "saved"), [(0, "there is no checkpoint yet"), (4, "last good checkpoint is step 4")])
def test_a_loss_that_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float, step: int, saved: str
) -> None:
    real, calls = loop_module.training_loss, []

    def poisoned(*arguments: object) -> torch.Tensor:
        calls.append(1)
        loss = real(*arguments)
        return loss * bad if len(calls) == step + 1 else loss

    monkeypatch.setattr(loop_module, "training_loss", poisoned)
    with pytest.raises(UserError, match=f"at step {step + 1} .*{saved}.*--lr") as caught:
        make_loop(tmp_path).run(trainee(), batches(6), 0, Progress())
    assert "\n" not in str(caught.value)
    assert [each["step"] for each in lines(tmp_path)] == list(range(1, step + 1))
    assert all(math.isfinite(each["loss"]) for each in lines(tmp_path))
    assert [each.step for each in list_checkpoints(tmp_path / "checkpoints")] == [2, 4][: step // 2]


def test_a_gradient_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss may be finite where its gradient is not."""
    real = loop_module.training_loss

    def poisoned(*arguments: object) -> torch.Tensor:
        loss = real(*arguments)
        return loss + (loss - loss).abs().sqrt()  # derivative of the root at 0

    monkeypatch.setattr(loop_module, "training_loss", poisoned)
    with pytest.raises(UserError, match="at step 1"):
        make_loop(tmp_path).run(trainee(), batches(6), 0, Progress())
    assert list_checkpoints(tmp_path / "checkpoints") == ()
