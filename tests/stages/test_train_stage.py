"""The train stage: what it settles, what it refuses, and that an interruption at any step changes nothing."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import Small
from user import Stop, start_gmtool

from gmtool.artifacts.gmm import open_gmm
from gmtool.artifacts.latents import Provenance, open_latents, write_latents
from gmtool.artifacts.run import latent_statistics, open_run
from gmtool.data.image_sets import find_images
from gmtool.data.latent_loader import latent_batches
from gmtool.data.mode_statistics import ModeInputs, mode_table_of
from gmtool.errors import MachineError, UserError
from gmtool.progress import Progress
from gmtool.settings import as_flat, changed, make
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.plan import facts_of, plan_training
from gmtool.stages.train.run import train
from gmtool.training.batches import BatchBuilder, mode_draws, mode_weights, stored_assignments
from gmtool.training.checkpoint import EMA, MODEL, OPTIMIZER, Position, find_checkpoint, list_checkpoints
from gmtool.training.step import Stepper, StepResult
from gmtool.training.task import Batch

CPU = torch.device("cpu")
QUICK = make(
    TrainConfig,
    {
        "steps": 5,
        "batch_size": 7,
        "warmup": 2,
        "save_every": 2,
        "preview_every": 0,
        "tensorboard": False,
        "device": "cpu",
    },
)


def run(
    small: Small, folder: Path, config: TrainConfig = QUICK, kind: str = "classes", progress: Progress | None = None
):
    return train(small.latents(kind), folder, config, progress or Progress())


class Notes(Progress):
    """Keeps what it is told, and which tasks were begun (+1) and ended (-1)."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.tasks: list[int] = []

    def begin(self, task: str, total: int, unit: str, done: int = 0) -> None:
        self.tasks.append(1)

    def end(self) -> None:
        self.tasks.append(-1)

    def note(self, message: str) -> None:
        self.lines.append(message)


def changes(folder: Path) -> dict[Path, int]:
    """When each file of a run was written last, but the lock's, which says who holds it."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def assert_same_run(first: Path, second: Path) -> None:
    """Metrics, and all files of the last checkpoints, to the last bit."""
    assert (first / "metrics.jsonl").read_text() == (second / "metrics.jsonl").read_text()
    one, two = (find_checkpoint(folder / "checkpoints", None) for folder in (first, second))
    assert one.position == two.position
    assert one.weights() == two.weights()
    for name in (*one.weights(), OPTIMIZER):
        here, there = load_file(one.path / name), load_file(two.path / name)
        assert here.keys() == there.keys()
        assert all(torch.equal(here[key], there[key]) for key in here), name


# --- what is settled --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "with_gmm", "given", "settled"),
    [
        ("classes", True, {}, ("gaussian", "independent", "class")),
        ("classes", True, {"objective": "gm-kl"}, ("gaussian", "independent", "class")),
        ("classes", True, {"objective": "mm-fm"}, ("gmm", "mode", "none")),
        ("classes", True, {"objective": "gm-kl", "source": "gmm"}, ("gmm", "mode", "class")),
        ("classes", True, {"source": "gmm"}, ("gmm", "independent", "class")),
        ("classes", True, {"coupling": "mode"}, ("gmm", "mode", "class")),
        ("classes", True, {"coupling": "batch-ot"}, ("gaussian", "batch-ot", "class")),
        ("classes", True, {"condition": "mode"}, ("gaussian", "independent", "mode")),
        ("classes", False, {}, ("gaussian", "independent", "class")),
        ("flat", True, {}, ("gaussian", "independent", "mode")),
        ("flat", True, {"objective": "gm-kl"}, ("gaussian", "independent", "mode")),
        ("flat", True, {"objective": "mm-fm"}, ("gmm", "mode", "none")),
        ("flat", True, {"condition": "none"}, ("gaussian", "independent", "none")),
        ("flat", False, {}, ("gaussian", "independent", "none")),
    ],
)
def test_defaults(small: Small, kind: str, with_gmm: bool, given: dict, settled: tuple[str, str, str]) -> None:
    with open_latents(small.latents(kind)) as latents, open_gmm(small.gmm(kind)) as gmm:
        plan = plan_training(make(TrainConfig, given), facts_of(latents, gmm if with_gmm else None), gpu=False)
    assert (plan.method.source, plan.method.coupling, plan.method.condition) == settled
    assert (plan.model, plan.batch_size, plan.schedule.rate, plan.method.time_shift) == ("tiny", 32, 2e-3, 1.0)
    shown = {name: plan.settings[name] for name in ("source", "coupling", "condition", "model", "batch_size", "lr")}
    assert shown == dict(zip(shown, (*settled, "tiny", 32, 2e-3), strict=True))


def test_what_is_given_stays(small: Small) -> None:
    config = make(
        TrainConfig,
        {"model": "small", "batch_size": 7, "lr": 0.5, "time_shift": 3.0, "condition": "none", "source": "gaussian"},
    )
    with open_latents(small.latents("classes")) as latents:
        plan = plan_training(config, facts_of(latents, None), gpu=False)
    settled = {"coupling": "independent", "mode_mean": False}
    assert plan.settings == {**as_flat(config), **settled}
    assert [choice.flag for choice in plan.choices] == ["--coupling"]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"objective": "mm-fm"},
        {"objective": "gm-kl"},
        {"objective": "gm-kl", "source": "gmm"},
        {"coupling": "batch-ot", "condition": "mode"},
        {"objective": "gm-kl", "spectral": True},
    ],
)
def test_what_was_settled_can_be_given_and_settles_nothing_else(small: Small, given: dict) -> None:
    """The note of a run's settings is a command: no flag of it is refused, and it leaves nothing open."""
    with open_latents(small.latents("classes")) as latents, open_gmm(small.gmm("classes")) as gmm:
        facts = facts_of(latents, gmm)
        plan = plan_training(make(TrainConfig, given), facts, gpu=False)
        again = plan_training(make(TrainConfig, plan.settings), facts, gpu=False)
    assert again.settings == plan.settings and not again.choices
    assert (again.method, again.architecture, again.schedule) == (plan.method, plan.architecture, plan.schedule)


DEFAULTS = {
    "--source": ("gaussian", "the default of fm"),
    "--coupling": ("independent", "the default of fm"),
    "--condition": ("class", "the images come in 3 classes"),
    "--time-shift": ("1", "for latents of 16 x 2 x 2 numbers"),
    "--model": ("tiny", "the default on a CPU"),
    "--batch-size": ("32", "the default on a CPU"),
    "--lr": ("0.002", "that of tiny"),
}
PUBLISHED = {name: (value, "as published for mm-fm") for name, value in (("--source", "gmm"), ("--coupling", "mode"))}


@pytest.mark.parametrize(
    ("kind", "with_gmm", "given", "others"),
    [
        ("classes", True, {}, {}),
        ("flat", True, {}, {"--condition": ("mode", "the images have no classes, and .*gmm.h5 with 4 modes is there")}),
        ("flat", False, {}, {"--condition": ("none", "no classes, and no fitted mixture is there")}),
        ("flat", True, {"objective": "mm-fm"}, {"--condition": ("none", "as published for mm-fm"), **PUBLISHED}),
        (
            "classes",
            True,
            {"objective": "gm-kl", "source": "gmm"},
            {
                "--source": None,
                "--coupling": ("mode", "gm-kl on --source gmm works in its modes' coordinates"),
                "--mode-mean": ("yes", "the coordinates do not tell the mode"),
            },
        ),
        (
            "classes",
            True,
            {"coupling": "mode", "time_shift": 2.0, "condition": "none", "model": "tiny", "batch_size": 3, "lr": 1e-3},
            {
                **dict.fromkeys(DEFAULTS),
                "--source": ("gmm", "--coupling mode draws noise from modes"),
            },
        ),
    ],
)
def test_what_was_open_is_told_with_its_value_and_the_reason(
    small: Small, kind: str, with_gmm: bool, given: dict, others: dict[str, tuple[str, str] | None]
) -> None:
    with open_latents(small.latents(kind)) as latents, open_gmm(small.gmm(kind)) as gmm:
        plan = plan_training(make(TrainConfig, given), facts_of(latents, gmm if with_gmm else None), gpu=False)
    choices = {choice.flag: choice for choice in plan.choices}
    expected = {name: choice for name, choice in {**DEFAULTS, **others}.items() if choice is not None}
    assert choices.keys() == expected.keys()
    for name, (value, why) in expected.items():
        assert choices[name].value == value and re.search(why, choices[name].why)


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ({}, (3, 0, 0)),
        ({"objective": "gm-kl"}, (3, 0, 8)),
        ({"objective": "gm-kl", "source": "gmm", "components": 2}, (3, 4, 2)),
        ({"objective": "gm-kl", "source": "gmm", "condition": "none"}, (0, 4, 8)),
        ({"objective": "mm-fm"}, (0, 0, 0)),
        ({"objective": "mm-fm", "condition": "mode"}, (0, 4, 0)),
    ],
)
def test_the_network_takes_the_labels_it_needs(small: Small, given: dict, labels: tuple[int, int, int]) -> None:
    with open_latents(small.latents("classes")) as latents, open_gmm(small.gmm("classes")) as gmm:
        architecture = plan_training(make(TrainConfig, given), facts_of(latents, gmm), gpu=False).architecture
    assert (architecture.classes, architecture.modes, architecture.components) == labels
    assert architecture.shape == (16, 2, 2)


def test_a_mixture_beside_the_latents_is_found_on_its_own(small: Small, tmp_path: Path) -> None:
    assert run(small, tmp_path / "flat", changed(QUICK, {"steps": 1}), "flat").plan.method.condition == "mode"
    shutil.copy(small.latents("flat"), tmp_path / "latents.h5")
    report = train(tmp_path / "latents.h5", tmp_path / "alone", changed(QUICK, {"steps": 1}), Progress())
    assert (report.plan.method.condition, report.plan.facts.mixture) == ("none", None)


def test_what_was_settled_is_told(small: Small, tmp_path: Path) -> None:
    """With the reason, also for the condition, which decides what may be asked for when sampling."""
    notes = Notes()
    run(small, tmp_path / "run", changed(QUICK, {"steps": 1}), progress=notes)
    assert "--condition class: the images come in 3 classes" in notes.lines
    other = Notes()
    run(small, tmp_path / "other", changed(QUICK, {"steps": 1}), "flat", progress=other)
    (line,) = [noted for noted in other.lines if noted.startswith("--condition ")]
    assert line.startswith("--condition mode: the images have no classes, and ") and "gmm.h5 with 4 modes" in line


def test_mode_weights_are_those_of_the_data(small: Small) -> None:
    with open_latents(small.latents("classes")) as latents, open_gmm(small.gmm("classes")) as gmm:
        kept = gmm.kept(slice(None))
        expected = np.zeros((3, 4))
        for label, modes, probabilities in zip(latents.labels, kept.modes, kept.probabilities, strict=True):
            for mode, probability in zip(modes, probabilities, strict=True):
                expected[label, mode] += probability
        by_class = mode_weights(latents, gmm, by_class=True)
        np.testing.assert_allclose(by_class, expected / expected.sum(1, keepdims=True), rtol=1e-6)
        np.testing.assert_allclose(mode_weights(latents, gmm, by_class=False)[0], gmm.weights, rtol=1e-6)
        # p(mode) = sum over classes of p(class) p(mode | class)
        np.testing.assert_allclose(np.array([30, 20, 10]) / 60 @ by_class.numpy(), gmm.weights, rtol=1e-5)


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_run_folder(small: Small, tmp_path: Path) -> None:
    report = run(small, tmp_path / "run", changed(QUICK, {"objective": "gm-kl", "source": "gmm", "preview_every": 3}))
    assert (report.resumed_from, report.steps) == (0, 5)
    trained = open_run(tmp_path / "run")
    assert trained.method == report.plan.method
    assert trained.classes == ("a", "b", "c")
    assert [source.role for source in trained.manifest.inputs] == ["latents", "gmm"]
    assert sorted(path.name for path in (tmp_path / "run").rglob("*") if path.is_file()) == sorted(
        ["config.json", "lock", "statistics.safetensors", "metrics.jsonl", "throughput.jsonl"]
        + ["step-00000003.png", "step-00000005.png"]
        + 2 * ["model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"]
    )
    with open_latents(small.latents("classes")) as latents, open_gmm(small.gmm("classes")) as gmm:
        statistics = trained.statistics()
        patches = torch.from_numpy(latents.patches(slice(None)))
        x = statistics.normalise(patches)
        torch.testing.assert_close(x.mean(0), torch.zeros(16, 2, 2), atol=1e-4, rtol=0)
        torch.testing.assert_close(statistics.restore(x), patches.float(), atol=1e-4, rtol=1e-4)
        assert statistics.mode_weights is not None
        torch.testing.assert_close(statistics.mode_weights, mode_weights(latents, gmm, by_class=True))
        np.testing.assert_array_equal(trained.tokenizer().arrays["components"], latents.tokenizer.arrays["components"])


@pytest.mark.slow
def test_the_loss_falls(small: Small, tmp_path: Path) -> None:
    run(small, tmp_path / "run", changed(QUICK, {"steps": 60, "batch_size": 32, "save_every": 60}))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:5])


# --- resuming ---------------------------------------------------------------------------------------------------------

UNION = {"objective": "gm-kl", "source": "gmm"}
TRANSPORT = {"source": "gmm", "coupling": "batch-ot", "condition": "mode"}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, UNION, TRANSPORT], ids=["fm", "union", "transport"])
@pytest.mark.parametrize("stopped", [1, 3, 4])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    small: Small, tmp_path: Path, settings: dict, stopped: int
) -> None:
    config = changed(QUICK, settings)
    run(small, tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        run(small, tmp_path / "cut", config, progress=Stop(stopped))
    # step n is told before its checkpoint is written
    assert run(small, tmp_path / "cut", config).resumed_from == (stopped - 1) // 2 * 2
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_other_workers_and_more_steps_give_the_same(small: Small, tmp_path: Path) -> None:
    run(small, tmp_path / "whole")
    run(small, tmp_path / "other", changed(QUICK, {"workers": 0, "steps": 3}))
    # step 3 was its last, so that it is saved
    report = run(small, tmp_path / "other", changed(QUICK, {"workers": 2}))
    assert (report.resumed_from, report.steps) == (3, 5)
    assert_same_run(tmp_path / "whole", tmp_path / "other")


@pytest.mark.slow
def test_previews_change_nothing(small: Small, tmp_path: Path) -> None:
    run(small, tmp_path / "whole")
    run(small, tmp_path / "other", changed(QUICK, {"preview_every": 2}))
    assert_same_run(tmp_path / "whole", tmp_path / "other")


@pytest.mark.slow
def test_the_seed_decides(small: Small, tmp_path: Path) -> None:
    run(small, tmp_path / "one")
    run(small, tmp_path / "two", changed(QUICK, {"seed": 1}))
    assert (tmp_path / "one/metrics.jsonl").read_text() != (tmp_path / "two/metrics.jsonl").read_text()


@pytest.mark.slow
def test_a_finished_run_is_left_alone(small: Small, tmp_path: Path) -> None:
    run(small, tmp_path / "run")
    before = changes(tmp_path / "run")
    report = run(small, tmp_path / "run")
    assert (report.resumed_from, report.steps) == (5, 5)
    assert run(small, tmp_path / "run", changed(QUICK, {"steps": 2})).steps == 5
    assert changes(tmp_path / "run") == before


@pytest.mark.slow
def test_killed_it_still_ends_the_same(small: Small, tmp_path: Path) -> None:
    """kill -9 of the command at some moment after its first checkpoint."""
    arguments = ["train", str(small.latents("classes")), "run", "--steps", "20", "--batch-size", "7", "--save-every"]
    arguments += ["3", "--preview-every", "0", "--device", "cpu"]
    config = make(TrainConfig, {"steps": 20, "batch_size": 7, "save_every": 3, "preview_every": 0, "device": "cpu"})
    process = start_gmtool(arguments, tmp_path)
    while process.poll() is None and not list_checkpoints(tmp_path / "run/checkpoints"):
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert 3 <= run(small, tmp_path / "run", config).resumed_from < 20
    run(small, tmp_path / "whole", config)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("stopped", [4, 5])
@pytest.mark.slow
def test_what_was_lost_between_a_checkpoint_and_its_preview_is_made_up(
    small: Small, tmp_path: Path, stopped: int
) -> None:
    """A kill after the checkpoint of a step leaves neither its grid nor its score: the same command makes both."""
    config = changed(QUICK, {"preview_every": 2, "eval_every": 2, "eval_num": 10})
    run(small, tmp_path / "whole", config)
    run(small, tmp_path / "run", changed(config, {"steps": stopped, "preview_every": 0, "eval_every": 0}))
    assert not (tmp_path / f"run/previews/step-0000000{stopped}.png").exists()
    for _ in range(2):  # and the second time nothing
        assert run(small, tmp_path / "run", config).resumed_from in (stopped, 5)
    # what was not asked for at earlier steps stays away
    wanted = [number for number in (4, 5) if number >= stopped]
    assert sorted(path.name for path in (tmp_path / "run/previews").iterdir()) == [
        f"step-0000000{step}.png" for step in wanted
    ]
    scores = [
        line
        for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()
        if "frechet_distance" in line and json.loads(line)["step"] in wanted
    ]
    assert [line for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines() if "frechet" in line] == scores
    for step in wanted:
        whole, again = (
            (tmp_path / name / "previews" / f"step-0000000{step}.png").read_bytes() for name in ("whole", "run")
        )
        assert whole == again


@pytest.mark.slow
def test_a_run_stopped_before_its_record_begins_anew(small: Small, tmp_path: Path, monkeypatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(Path, "write_text", full)
        run(small, tmp_path / "run")
    assert run(small, tmp_path / "run").resumed_from == 0
    run(small, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"lr": 0.5}, "--lr 0.002, not --lr 0.5"),
        ({"batch_size": 8}, "--batch-size 7, not --batch-size 8"),
        ({"objective": "gm-kl"}, "--objective fm, not --objective gm-kl"),
        ({"model": "small"}, "--model tiny, not --model small"),
        ({"seed": 1}, "--seed 0, not --seed 1"),
        ({"ema": (0.5,)}, r"--ema 0.9995, not --ema 0.5"),
        ({"condition": "none"}, "--condition class, not --condition none"),
        ({"lr_knots": "100%:0"}, "no --lr-knots, not --lr-knots 100%:0"),
        ({"qk_norm": True}, "--no-qk-norm, not --qk-norm"),
    ],
)
def test_resuming_with_other_settings(small: Small, finished: Path, changes: dict, flag: str) -> None:
    with pytest.raises(UserError, match=f"was begun with {flag}"):
        run(small, finished, changed(QUICK, changes))


@pytest.fixture(scope="module")
def finished(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(small, folder)
    return folder


def test_a_falling_schedule_fixes_the_steps(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = changed(QUICK, {"steps": 2, "lr_knots": "100%:0", "lr_curve": "cosine"})
    run(small, tmp_path / "run", config)
    with pytest.raises(UserError, match="begun with --steps 2, not --steps 4"):
        run(small, tmp_path / "run", changed(config, {"steps": 4}))
    notes: list[str] = []
    monkeypatch.setattr(Progress, "note", lambda _, message: notes.append(message))
    run(small, tmp_path / "run", config)
    assert notes[-1].endswith("has all its 2 steps; its schedule follows --steps, so a longer training is a new run")


def test_resuming_on_other_latents(small: Small, finished: Path, tmp_path: Path) -> None:
    with open_latents(small.latents("classes")) as latents:
        write_latents(
            tmp_path / "latents.h5",
            patches=latents.patches(slice(None)) + np.float16(1),
            descriptors=latents.descriptors(slice(None)),
            labels=latents.labels,
            names=latents.names(),
            classes=latents.classes,
            tokenizer=latents.tokenizer,
            provenance=Provenance("encode", {}),
        )
    with pytest.raises(UserError, match="trained on other latents than"):
        train(tmp_path / "latents.h5", finished, QUICK, Progress())


def test_more_steps_and_other_settings_that_may_change_stand_in_the_record(small: Small, tmp_path: Path) -> None:
    run(small, tmp_path / "run", changed(QUICK, {"steps": 2}))
    fingerprint = open_run(tmp_path / "run").manifest.fingerprint
    run(small, tmp_path / "run", changed(QUICK, {"steps": 4, "keep": 5, "micro_batch": "1"}))
    longer = open_run(tmp_path / "run")
    assert [longer.manifest.config[name] for name in ("steps", "keep", "micro_batch")] == [4, 5, "1"]
    assert longer.manifest.fingerprint == fingerprint


@pytest.mark.slow
def test_a_micro_batch_does_not_change_the_run(small: Small, tmp_path: Path) -> None:
    config = changed(QUICK, {"objective": "gm-kl", "source": "gmm", "batch_size": 8, "steps": 3})
    run(small, tmp_path / "whole", config)
    run(small, tmp_path / "parts", changed(config, {"micro_batch": "2"}))
    whole, parts = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    )
    for one, two in zip(whole, parts, strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    with pytest.raises(UserError, match="--micro-batch 3 does not divide the 8 images of a step: use 2"):
        run(small, tmp_path / "other", changed(config, {"micro_batch": "3"}))


@pytest.mark.slow
def test_several_averages_muon_and_a_schedule_resume_too(small: Small, tmp_path: Path) -> None:
    config = changed(
        QUICK,
        {
            "optimizer": "muon",
            "ema": (0.1, 0.99),
            "ema_power": (0.1,),
            "lr_knots": "1:2e-3,2:1.4e-3,2:7e-4,4:1e-4",
            "betas": (0.8, 0.9),
            "weight_decay": 0.1,
        },
    )
    run(small, tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        run(small, tmp_path / "cut", config, progress=Stop(3))
    assert run(small, tmp_path / "cut", config).resumed_from == 2
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    newest = find_checkpoint(tmp_path / "whole/checkpoints", None)
    averages = {name: load_file(newest.path / name) for name in newest.weights() if name != MODEL}
    assert list(averages) == ["ema-0.99.safetensors", "ema-power-0.1.safetensors", "ema.safetensors"]
    first, *others = averages.values()
    assert all(any(not torch.equal(first[key], source[key]) for key in first) for source in others)
    state = load_file(newest.path / OPTIMIZER)
    assert "blocks.0.attn.qkv.weight.momentum_buffer" in state
    assert "blocks.0.attn.qkv.bias.exp_avg" in state
    assert "x_embedder.weight.exp_avg_sq" in state


# --- straight from images ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_on_images(small: Small, tmp_path: Path) -> None:
    """Nearly the run on their latents, which are rounded; with mirrors another one, that resumes exactly."""
    config = changed(QUICK, {"workers": 0, "images": small.classes / "images", "steps": 4})
    run(small, tmp_path / "latents", changed(config, {"images": None}))
    run(small, tmp_path / "images", config)
    stored, fresh = (
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("latents", "images")
    )
    assert fresh == pytest.approx(stored, rel=1e-3)
    assert {source.role for source in open_run(tmp_path / "images").manifest.inputs} == {"latents", "images"}
    flipped = changed(config, {"flip": True})
    run(small, tmp_path / "whole", flipped)
    assert (tmp_path / "whole/metrics.jsonl").read_text() != (tmp_path / "images/metrics.jsonl").read_text()
    with pytest.raises(KeyboardInterrupt):
        run(small, tmp_path / "cut", flipped, progress=Stop(3))
    assert run(small, tmp_path / "cut", changed(flipped, {"workers": 1})).resumed_from == 2
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    with pytest.raises(UserError, match="was begun with --images: repeat"):
        run(small, tmp_path / "images", changed(config, {"images": None}))
    with pytest.raises(UserError, match="was trained on other images than"):
        run(small, tmp_path / "images", changed(config, {"images": small.classes / "images/a"}))
    record = json.loads((tmp_path / "images/config.json").read_text())
    (known,) = [source for source in record["inputs"] if source["role"] == "images"]
    known["fingerprint"] = find_images(small.classes / "images").listing  # as earlier versions named images
    del record["checksum"]
    (tmp_path / "images/config.json").write_text(json.dumps(record))
    before = config.loop.steps
    assert run(small, tmp_path / "images", changed(config, {"steps": before + 1})).resumed_from == before


@pytest.mark.slow
def test_mm_fm_on_images_resumes_exactly(small: Small, tmp_path: Path) -> None:
    """With mirrors and modes drawn on the fly; nearly the run on latents, as long as nothing is mirrored."""
    config = changed(QUICK, {"workers": 0, "images": small.classes / "images", "steps": 4, "objective": "mm-fm"})
    run(small, tmp_path / "plain", config)
    run(small, tmp_path / "latents", changed(config, {"images": None}))
    stored, fresh = (
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("latents", "plain")
    )
    assert fresh == pytest.approx(stored, rel=1e-3)
    assert {source.role for source in open_run(tmp_path / "plain").manifest.inputs} == {"latents", "gmm", "images"}
    flipped = changed(config, {"flip": True})
    run(small, tmp_path / "whole", flipped)
    with pytest.raises(KeyboardInterrupt):
        run(small, tmp_path / "cut", flipped, progress=Stop(3))
    assert run(small, tmp_path / "cut", changed(flipped, {"workers": 1})).resumed_from == 2
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"flip": True}, "--flip needs --images"),
        ({"images": Path("here"), "fraction": 0.5}, "--fraction takes a part of the latents, not of --images"),
        ({"images": Path("nowhere")}, "nowhere does not exist: give a folder"),
    ],
)
def test_images_and_settings_that_do_not_go_together(small: Small, tmp_path: Path, settings: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        run(small, tmp_path / "run", changed(QUICK, settings))
    assert not (tmp_path / "run").exists()


def test_previews_among_the_images(small: Small) -> None:
    """A resumed run would be told that its images had changed."""
    with pytest.raises(UserError, match=r"run lies in .*images, and its pictures"):
        run(small, small.classes / "images" / "run", changed(QUICK, {"images": small.classes / "images"}))
    assert not (small.classes / "images" / "run").exists()


# --- divergence -------------------------------------------------------------------------------------------------------


def poison(monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[int, int], bool]) -> list[tuple[int, int]]:
    """Make the loss of some steps NaN, told by (order of the data, step from 0); return what was taken."""
    real, taken = Stepper.take, []
    seeds = {Position(order=order).seed(QUICK.seed): order for order in range(9)}

    def take(self: Stepper, batch: Batch, step: int, seed: int) -> StepResult:
        order = seeds[seed]
        taken.append((order, step))
        return real(self, replace(batch, x=batch.x * torch.nan) if is_bad(order, step) else batch, step, seed)

    monkeypatch.setattr(Stepper, "take", take)
    return taken


@pytest.mark.slow
def test_a_run_that_diverges_goes_back_with_other_data(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it is killed afterwards: it comes to the same end."""
    config = changed(QUICK, {"steps": 9, "skip_limit": 3, "keep": 9})
    # step 4 is saved amid bad steps, and is no place to go back to
    taken, notes = poison(monkeypatch, lambda order, step: order == 0 and step in (3, 4, 5)), Notes()
    run(small, tmp_path / "run", config, progress=notes)
    assert taken == [(0, n) for n in range(6)] + [(1, n) for n in range(2, 9)]
    assert any("3 steps in a row up to step 6" in noted and "going back to step 2" in noted for noted in notes.lines)
    assert notes.tasks == [1, -1, 1, -1]  # a terminal shows one bar at a time
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 10))
    assert find_checkpoint(tmp_path / "run/checkpoints", None).position == Position(9, 1, 0, 0)
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "run/checkpoints")] == [2, 4, 6, 8, 9]
    for stopped in (7, 8):  # after it has rolled back, before and after its next checkpoint
        with pytest.raises(KeyboardInterrupt):
            run(small, tmp_path / f"cut{stopped}", config, progress=Stop(stopped))
        run(small, tmp_path / f"cut{stopped}", config)
        assert_same_run(tmp_path / "run", tmp_path / f"cut{stopped}")


@pytest.mark.slow
def test_a_run_that_always_diverges_stops_with_advice(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, lambda order, step: step > 2)
    with pytest.raises(UserError, match=r"after going back 3 times.*--lr or --clip.*--precision float32") as caught:
        run(small, tmp_path / "run", changed(QUICK, {"steps": 9, "skip_limit": 3}))
    assert "\n" not in str(caught.value)
    poison(monkeypatch, lambda order, step: True)
    with pytest.raises(UserError, match=r"3 steps in a row up to step 3 .*there is no checkpoint to go back to"):
        run(small, tmp_path / "bad", changed(QUICK, {"steps": 9, "skip_limit": 3, "save_every": 2}))


# --- what is damaged, held or wrong -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_checkpoint_that_was_cut_short_is_passed_over_with_a_word(small: Small, tmp_path: Path) -> None:
    run(small, tmp_path / "run")
    older, newest = list_checkpoints(tmp_path / "run/checkpoints")
    for path in list(newest.path.iterdir()):
        whole = path.read_bytes()
        for length in {0, 1, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:length])
            assert list_checkpoints(tmp_path / "run/checkpoints") == (older,)
            assert find_checkpoint(tmp_path / "run/checkpoints", None) == older
        path.write_bytes(whole)
    assert list_checkpoints(tmp_path / "run/checkpoints") == (older, newest)
    (newest.path / EMA).unlink()
    notes = Notes()
    assert run(small, tmp_path / "run", changed(QUICK, {"steps": 6}), progress=notes).resumed_from == older.step
    assert any("passing over" in line and f"{newest.path} was cut short" in line for line in notes.lines)


@pytest.mark.slow
def test_checkpoints_for_ever_and_the_newest(small: Small, tmp_path: Path) -> None:
    run(small, tmp_path / "run", changed(QUICK, {"steps": 9, "save_every": 1, "keep": 2, "keep_every": 3}))
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "run/checkpoints")] == [3, 6, 8, 9]
    with pytest.raises(UserError, match="--keep-every 3 is not a multiple of --save-every 2"):
        changed(QUICK, {"keep_every": 3})


HOLD = """
import sys, time
from pathlib import Path
from gmtool.artifacts.run import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_two_trains_at_once(small: Small, tmp_path: Path) -> None:
    """The second says so; a process that was killed holds nothing."""
    run(small, tmp_path / "run", changed(QUICK, {"steps": 1}))
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    try:
        with pytest.raises(
            UserError, match=rf"run is being trained by process {other.pid} on .*: wait for it, or choose another"
        ):
            run(small, tmp_path / "run", changed(QUICK, {"steps": 2}))
    finally:
        other.kill()
        other.communicate()
    assert run(small, tmp_path / "run", changed(QUICK, {"steps": 2})).steps == 2


@pytest.mark.slow
def test_two_trains_at_once_into_a_new_folder(small: Small, tmp_path: Path) -> None:
    """One of them makes the run, and the other says who does."""
    arguments = ["train", str(small.latents("classes")), "run", "--steps", "40", "--batch-size", "7", "--device", "cpu"]
    both = [start_gmtool([*arguments, "--preview-every", "0"], tmp_path) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) in ([0, 2], [0, 0])  # the second may have come when the first had ended
    for code, error in zip(codes, errors, strict=True):
        assert not code or "run is being trained by process" in error.splitlines()[-1]
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])["step"] == 40


def test_a_run_that_cannot_begin_leaves_nothing(small: Small, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing.*does not exist"):
        run(small, tmp_path / "run", changed(QUICK, {"images": tmp_path / "missing"}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_checkpoint_of_another_network(small: Small, tmp_path: Path) -> None:
    run(small, tmp_path / "run")
    run(small, tmp_path / "other", changed(QUICK, {"objective": "gm-kl"}))
    shutil.rmtree(tmp_path / "run/checkpoints")
    shutil.copytree(tmp_path / "other/checkpoints", tmp_path / "run/checkpoints")
    with pytest.raises(UserError, match=r"model.safetensors holds the weights of another network") as caught:
        run(small, tmp_path / "run", changed(QUICK, {"steps": 6}))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(small: Small, tmp_path: Path) -> None:
    config = changed(QUICK, {"save_every": 2, "keep": 2})
    run(small, tmp_path / "whole", changed(config, {"steps": 7}))
    run(small, tmp_path / "run", changed(config, {"steps": 5}))
    older, newest = list_checkpoints(tmp_path / "run/checkpoints")
    (newest.path / MODEL).write_bytes((newest.path / MODEL).read_bytes()[:1000])
    assert run(small, tmp_path / "run", changed(config, {"steps": 7})).resumed_from == older.step
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_only_damaged_checkpoints_are_named(small: Small, tmp_path: Path) -> None:
    run(small, tmp_path / "run")
    for checkpoint in list_checkpoints(tmp_path / "run/checkpoints"):
        (checkpoint.path / MODEL).write_bytes((checkpoint.path / MODEL).read_bytes()[:1000])
    with pytest.raises(UserError, match=r"no checkpoint is intact.*step-00000005 was cut short"):
        run(small, tmp_path / "run", changed(QUICK, {"steps": 7}))


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("flat", {"condition": "class"}, "latents.h5 had no class folders; use mode or none"),
        ("classes", {"gmm": Path("none.h5")}, "none.h5 does not exist.*fit-gmm"),
        ("alone", {"source": "gmm"}, "gmm.h5 does not exist.*fit-gmm"),
        ("alone", {"condition": "mode"}, "gmm.h5 does not exist.*fit-gmm"),
        ("alone", {"objective": "mm-fm"}, "gmm.h5 does not exist.*fit-gmm"),
    ],
)
def test_inputs_that_cannot_serve(small: Small, tmp_path: Path, kind: str, settings: dict, words: str) -> None:
    path = (
        small.latents(kind) if kind != "alone" else Path(shutil.copy(small.latents("classes"), tmp_path / "latents.h5"))
    )
    with pytest.raises(UserError, match=words):
        train(path, tmp_path / "run", changed(QUICK, settings), Progress())
    assert not (tmp_path / "run").exists()


def test_a_mixture_of_other_latents(small: Small, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"was fitted to other latents .*, not to .*: fit another mixture"):
        run(small, tmp_path / "run", changed(QUICK, {"objective": "mm-fm", "gmm": small.gmm("flat")}))
    # one that only lies there and is not used does no harm
    shutil.copy(small.latents("classes"), tmp_path / "latents.h5")
    shutil.copy(small.gmm("flat"), tmp_path / "gmm.h5")
    assert train(tmp_path / "latents.h5", tmp_path / "run", changed(QUICK, {"steps": 1}), Progress()).steps == 1


def test_files_of_another_kind(small: Small, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a fitted mixture, not a latents file: give what `gmtool encode` writes"):
        train(small.gmm("classes"), tmp_path / "run", QUICK, Progress())
    with pytest.raises(UserError, match=r"is a latents file, not a fitted mixture: give what `gmtool fit-gmm` writes"):
        run(small, tmp_path / "run", changed(QUICK, {"source": "gmm", "gmm": small.latents("classes")}))
    (tmp_path / "half.h5").write_bytes(small.latents("classes").read_bytes()[:3000])
    with pytest.raises(UserError, match=r"half.h5 is not a whole HDF5 file"):
        train(tmp_path / "half.h5", tmp_path / "run", QUICK, Progress())
    assert not (tmp_path / "run").exists()


def test_a_folder_of_other_things(small: Small, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a run"):
        run(small, tmp_path)
    with pytest.raises(UserError, match="exists and is not a run"):
        run(small, tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_no_room_for_the_checkpoints(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of checkpoints may be a disk of its own."""

    def free_bytes(path: Path) -> int:
        return 10**6 if path.parent == tmp_path / "run/checkpoints" else 10**12

    monkeypatch.setattr("gmtool.artifacts.files.free_bytes", free_bytes)
    with pytest.raises(MachineError, match=r"the folder .*run/checkpoints needs .* MiB, but only 976.6 KiB are free"):
        run(small, tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": "mm-fm", "source": "gaussian"}, "remove --source gaussian"),
        ({"objective": "mm-fm", "coupling": "batch-ot"}, "remove --coupling batch-ot"),
        ({"coupling": "mode", "source": "gaussian"}, "needs --source gmm"),
        ({"objective": "gm-kl", "coupling": "batch-ot"}, "--coupling independent or mode"),
        ({"objective": "gm-kl", "source": "gmm", "coupling": "independent"}, "use --coupling mode"),
        ({"objective": "kl"}, "--objective must be one of fm, gm-kl, mm-fm"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"ema": (1.0,)}, "--ema must be below 1"),
        ({"lr": float("nan")}, "--lr must be a finite number"),
        ({"transition_ratio": 1.5}, "--transition-ratio must be at most 1"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(TrainConfig, settings)


def test_images_beside_the_class_folders_have_no_class(small: Small, tmp_path: Path) -> None:
    """They train the network as data whose class is hidden, and count for no class's modes."""
    with open_latents(small.latents("classes")) as latents, open_gmm(small.gmm("classes")) as gmm:
        expected = mode_weights(latents, gmm, by_class=True)[1:]
        latents.labels[latents.labels == 0] = -1
        weights = mode_weights(latents, gmm, by_class=True)
    torch.testing.assert_close(weights[1:], expected)
    # a class without images has all images' modes
    np.testing.assert_allclose(weights[0], np.array([20, 10]) / 30 @ expected.numpy(), rtol=1e-5)
    with open_latents(small.latents("classes")) as latents:
        write_latents(
            tmp_path / "latents.h5",
            patches=latents.patches(slice(None)),
            descriptors=latents.descriptors(slice(None)),
            labels=np.where(np.arange(60) % 3 == 0, -1, latents.labels),
            names=latents.names(),
            classes=latents.classes,
            tokenizer=latents.tokenizer,
            provenance=Provenance("encode", {}),
        )
    report = train(tmp_path / "latents.h5", tmp_path / "run", QUICK, Progress())
    assert (report.plan.method.condition, report.steps) == ("class", 5)


@pytest.mark.parametrize("coupling", ["independent", "batch-ot", "mode"])
def test_the_noise_of_training_comes_from_the_whole_mixture(small: Small, coupling: str) -> None:
    """Apart from the data's modes or with them: over the data, modes come as often as the mixture says."""
    config = make(TrainConfig, {"source": "gmm", "coupling": coupling, "condition": "class", "device": "cpu"})
    with open_latents(small.latents("classes")) as latents, open_gmm(small.gmm("classes")) as gmm:
        statistics = latent_statistics(latents, mode_weights(latents, gmm, by_class=True))
        plan = plan_training(config, facts_of(latents, gmm), gpu=False)
        builder = BatchBuilder(
            labels=latents.labels,
            classes=3,
            mode_draws=mode_draws(stored_assignments(gmm), gmm),
            mode_inputs=ModeInputs(plan.method.method, mode_table_of(plan.method, gmm, statistics, CPU), False),
            statistics=statistics,
            device=CPU,
        )
        modes, own = [], []
        means = statistics.normalise(torch.from_numpy(gmm.patch_mean(np.arange(4))))
        for batch in builder.batches(latent_batches(latents, 60, 0, 0, 40, None), 0, 0):
            assert batch.source_modes is not None and batch.modes is not None
            modes.append(torch.cdist(batch.source_modes.mean.flatten(1), means.flatten(1)).argmin(1))
            own.append(batch.modes)
        weights = torch.from_numpy(gmm.weights)
    seen, known = torch.cat(modes), torch.cat(own)
    shares = torch.bincount(seen, minlength=4) / len(seen)
    assert ((shares - weights) / (weights * (1 - weights) / len(seen)).sqrt()).abs().max() < 4
    expected = 1.0 if coupling == "mode" else float(weights.square().sum())  # two independent draws that agree
    assert (seen == known).float().mean().item() == pytest.approx(expected, abs=0.04)
