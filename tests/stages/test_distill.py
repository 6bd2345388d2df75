"""The distill stage: every teacher has a student, which is a run like any other; what cannot be taught is refused."""

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import MIXTURE, Small
from user import Stop, start_gmtool, torchrun

from gmtool.artifacts.latents import Provenance, open_latents, write_latents
from gmtool.artifacts.run import open_run
from gmtool.errors import MachineError, UserError
from gmtool.flow.coordinates import Plain, Whitened
from gmtool.flow.source import GaussianSource, MixtureSource
from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.architecture import Conditions
from gmtool.nn.build import build_network
from gmtool.progress import Progress
from gmtool.sampling.model import load_network
from gmtool.settings import changed, make, settings_of
from gmtool.stages.distill import run as distill_run
from gmtool.stages.distill.config import DistillConfig
from gmtool.stages.distill.plan import open_teacher
from gmtool.stages.distill.run import distill, drift_note, forecast
from gmtool.stages.fit_gmm.run import fit_gmm
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.sample.run import sample
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.run import train
from gmtool.training.checkpoint import find_checkpoint

TRAINING = make(TrainConfig, {"steps": 2, "batch_size": 8, "preview_every": 0, "tensorboard": False, "device": "cpu"})
QUICK = make(
    DistillConfig,
    {
        "steps": 3,
        "batch_size": 8,
        "components": 4,
        "warmup": 1,
        "save_every": 1,
        "preview_every": 0,
        "tensorboard": False,
        "device": "cpu",
    },
)
DRAWING = make(SampleConfig, {"num": 4, "device": "cpu"})
MM_FM = {"objective": "mm-fm"}
TOLD = {"objective": "mm-fm", "condition": "mode"}
UNION = {"objective": "gm-kl", "source": "gmm", "components": 4}
GMFLOW = {"objective": "gm-kl", "components": 4}


@pytest.fixture(scope="module")
def teacher_of(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A run of two steps with these settings; each is trained once. Not to be written to."""
    root, known = tmp_path_factory.mktemp("teachers"), {}

    def make(kind: str = "classes", **settings: object) -> Path:
        key = (kind, *sorted(settings.items()))
        if key not in known:
            known[key] = root / str(len(known))
            train(small.latents(kind), known[key], changed(TRAINING, settings), Progress())
        return known[key]

    return make


def student_of(teacher: Path, folder: Path, **settings: object) -> Path:
    distill(teacher, folder, changed(QUICK, settings), Progress())
    return folder


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


TEACHERS = {
    "fm": {},
    "mm-fm": MM_FM,
    "mm-fm conditioned on the mode": TOLD,
    "gm-kl": GMFLOW,
    "union": UNION,
    "batch-ot": {"coupling": "batch-ot"},
    "mode mean": {**TOLD, "mode_mean": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("data_free", [False, True])
def test_every_run_has_a_student_that_is_drawn_from(teacher_of, tmp_path, name, data_free):
    teacher = teacher_of(**TEACHERS[name])
    folder = student_of(teacher, tmp_path / "student", data_free=data_free, evaluations=2, last_segment=0.5)
    assert all(0 < loss < 100 for loss in losses(folder))
    student, taught = open_run(folder), open_run(teacher)
    assert student.method.student is not None
    assert student.architecture.components == 4
    assert student.manifest.input("teacher").path == str(teacher.absolute())
    assert (student.manifest.input("latents") is None) == data_free
    assert student.classes == taught.classes
    report = sample(folder, tmp_path / "samples", DRAWING, Progress())
    assert report.count == 4
    assert report.plan.steps == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "coordinates", "source", "native"),
    [
        ({}, Plain(), GaussianSource(), None),
        (MM_FM, Plain(), MixtureSource(), None),
        (TOLD, Whitened(), GaussianSource(), Plain()),
        (UNION, Whitened(), GaussianSource(), None),
    ],
    ids=["fm", "mm-fm", "conditioned on the mode", "union"],
)
def test_coordinates_follow_the_teacher(teacher_of, tmp_path, settings, coordinates, source, native):
    method = open_run(student_of(teacher_of(**settings), tmp_path / "student")).method.method
    assert (method.coordinates, method.source, method.native) == (coordinates, source, native)


def first_prediction(run_folder: Path, x: torch.Tensor) -> GaussianMixture:
    """What the network of a run's first checkpoint predicts."""
    run = open_run(run_folder)
    weights = find_checkpoint(run.checkpoints, 1).path / "model.safetensors"
    network = load_network(run.architecture, weights, torch.device("cpu"))
    labels = torch.zeros(len(x), dtype=torch.long)
    conditions = Conditions(classes=labels, modes=labels if run.architecture.modes else None)
    with torch.no_grad():
        return network(x, torch.full((len(x),), 0.7), conditions)


@pytest.mark.slow
def test_a_student_begins_as_its_teacher(teacher_of, tmp_path):
    """Before it has learned, at a rate of 0: of a velocity the mean is near it; of a mixture it is the same one."""
    x = torch.randn(3, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    for settings, close in (({}, 0.5), (GMFLOW, 1e-5)):
        teacher = teacher_of(**settings)
        student = student_of(teacher, tmp_path / str(len(settings)), lr=0.0, steps=1)
        drawing = open_teacher(teacher, QUICK)
        network = load_network(drawing.run.architecture, drawing.weights, torch.device("cpu"))
        labels = torch.zeros(3, dtype=torch.long)
        with torch.no_grad():
            taught = network(x, torch.full((3,), 0.7), Conditions(classes=labels))
        predicted = first_prediction(student, x)
        if isinstance(taught, GaussianMixture):
            torch.testing.assert_close(predicted.means, taught.means)
            torch.testing.assert_close(predicted.log_weights, taught.log_weights)
            taught = taught.mean()
        assert float((predicted.mean() - taught).abs().mean()) < close
        # and its components differ, else they would learn the same
        assert float((predicted.means[:, 0] - predicted.means[:, 1]).abs().mean()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"guidance": "cfg", "guidance_scale": 2.0},
        {"guidance": "cfg", "guidance_scale": 2.0, "guidance_interval": "0.2,0.6"},
    ],
    ids=["cfg", "in an interval"],
)
def test_guidance_changes_what_is_learned(teacher_of, tmp_path, settings):
    teacher = teacher_of()
    plain = student_of(teacher, tmp_path / "plain")
    guided = student_of(teacher, tmp_path / "guided", **settings)
    assert losses(plain) != losses(guided)
    with pytest.raises(UserError, match="a student has learned its teacher's guidance"):
        sample(guided, tmp_path / "samples", changed(DRAWING, {"guidance": "cfg"}), Progress())


@pytest.mark.slow
def test_guidance_of_a_mixture_and_by_a_weaker_run_is_learned(teacher_of, tmp_path):
    teacher = teacher_of(**GMFLOW)
    plain = student_of(teacher, tmp_path / "plain")
    for name, settings in (
        ("prob", {"guidance": "prob", "guidance_scale": 0.3, "guidance_interval": "0.1,0.9"}),
        ("auto", {"guidance": "auto", "guide": teacher_of(**GMFLOW, seed=1), "guidance_scale": 0.3}),
    ):
        assert losses(student_of(teacher, tmp_path / name, **settings)) != losses(plain)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["dx", "dx-poly"])
def test_a_student_without_a_mixture(teacher_of, tmp_path, policy):
    folder = student_of(teacher_of(), tmp_path / "student", policy=policy, points=3, components=None)
    assert open_run(folder).architecture.velocities == 3
    assert sample(folder, tmp_path / "samples", DRAWING, Progress()).count == 4
    with pytest.raises(UserError, match="--temperature needs a mixture, and this student's policy is dx"):
        sample(folder, tmp_path / "cooled", changed(DRAWING, {"temperature": 0.5}), Progress())


@pytest.mark.slow
def test_the_ways_to_draw_from_a_student_differ(teacher_of, tmp_path):
    folder = student_of(teacher_of(), tmp_path / "student", evaluations=2)
    drawn = {}
    for name, settings in (("ode", {}), ("cooled", {"temperature": 0.3}), ("renewed", {"renewal": 1.0})):
        sample(folder, tmp_path / name, changed(DRAWING, settings), Progress())
        with open_latents(tmp_path / name / "latents.h5") as latents:
            drawn[name] = latents.patches(slice(None)).astype(np.float32)
    assert not np.array_equal(drawn["ode"], drawn["cooled"])
    assert not np.array_equal(drawn["ode"], drawn["renewed"])
    sample(folder, tmp_path / "again", changed(DRAWING, {"steps": 2, "solver": "policy"}), Progress())
    with open_latents(tmp_path / "again" / "latents.h5") as latents:
        assert np.array_equal(latents.patches(slice(None)).astype(np.float32), drawn["ode"])


# --- exact resume -----------------------------------------------------------------------------------------------------


def assert_same_student(first: Path, second: Path) -> None:
    assert (first / "metrics.jsonl").read_text() == (second / "metrics.jsonl").read_text()
    one, two = (find_checkpoint(run / "checkpoints", None).path for run in (first, second))
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        here, there = load_file(one / name), load_file(two / name)
        assert all(torch.equal(here[key], there[key]) for key in here)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"teacher_steps": 5}, {"data_free": True}], ids=str)
def test_an_interrupted_student_equals_an_uninterrupted_one(teacher_of, tmp_path, settings):
    teacher = teacher_of(**UNION)
    whole = student_of(teacher, tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        distill(teacher, tmp_path / "part", changed(QUICK, settings), Stop(2))
    assert_same_student(student_of(teacher, tmp_path / "part", **settings), whole)
    with pytest.raises(UserError, match="was begun with --evaluations 1"):
        student_of(teacher, tmp_path / "part", evaluations=2, **settings)


@pytest.mark.slow
def test_a_killed_student_equals_an_uninterrupted_one(teacher_of, tmp_path):
    teacher = teacher_of()
    flags = "--steps 12 --batch-size 8 --components 4 --save-every 2 --preview-every 0 --device cpu --no-tensorboard"
    command = ["distill", str(teacher), "part", *flags.split()]
    process = start_gmtool(command, tmp_path)
    while process.poll() is None and not list((tmp_path / "part" / "checkpoints").glob("step-0000000[2-9]")):
        pass
    process.kill()
    process.communicate()
    process = start_gmtool(command, tmp_path)
    assert process.wait() == 0, process.communicate()
    settings = {"steps": 12, "save_every": 2, "warmup": 100}
    whole = student_of(teacher, tmp_path / "whole", **settings)
    one, two = (find_checkpoint(run / "checkpoints", None).path for run in (tmp_path / "part", whole))
    here, there = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert all(torch.equal(here[key], there[key]) for key in here)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"data_free": True}], ids=str)
def test_two_processes_equal_one(teacher_of, tmp_path, settings):
    teacher = teacher_of(**UNION)
    alone = student_of(teacher, tmp_path / "alone", **settings)
    flags = "--steps 3 --batch-size 8 --components 4 --warmup 1 --save-every 1 --preview-every 0 --device cpu"
    more = ["--data-free"] if settings else []
    done = torchrun(["-m", "gmtool", "--", "distill", str(teacher), "both", *flags.split(), *more], tmp_path)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "both") == pytest.approx(losses(alone), rel=1e-5)


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(teacher: Path, folder: Path, match: str, **settings: object) -> None:
    with pytest.raises(UserError, match=match):
        student_of(teacher, folder, **settings)
    assert not folder.exists()


@pytest.mark.slow
def test_what_does_not_fit_together_is_refused_in_a_line(small, teacher_of, tmp_path):
    fm, mixture, folder = teacher_of(), teacher_of(**GMFLOW), tmp_path / "student"
    refused(fm, folder, "was trained on other latents than", latents=small.latents("flat"))
    refused(
        mixture, folder, "--policy dx predicts velocities, and this teacher a mixture", policy="dx", components=None
    )
    refused(mixture, folder, "--components 2: this teacher's mixture has 4", components=2)
    refused(fm, folder, "--guidance prob needs a mixture head", guidance="prob")
    refused(teacher_of(condition="none"), folder, "--guidance cfg needs a run with conditions", guidance="cfg")
    refused(
        fm, folder, "--coordinates whitened needs a teacher that is conditioned on the mode", coordinates="whitened"
    )
    refused(teacher_of(**UNION), folder, "--coordinates plain: this teacher's flow", coordinates="plain")
    refused(tmp_path / "nothing", folder, "does not exist: give the folder")
    refused(fm, folder, r"--checkpoint 7: .* has 2", teacher_checkpoint=7)
    student = student_of(fm, tmp_path / "first")
    refused(student, folder, "is a student itself")
    with pytest.raises(UserError, match="is a run of gmtool train: choose another folder"):
        student_of(fm, fm)
    for steps in (2, 8):
        with pytest.raises(UserError, match=f"--steps {steps}: this student was made for 1: use --steps 1"):
            sample(student, tmp_path / "samples", changed(DRAWING, {"steps": steps}), Progress())
    for settings, words in (
        ({"solver": "heun"}, "--solver heun: a student follows its policy"),
        ({"protocol": "rae", "steps": None}, "--protocol rae: a student has its own times"),
    ):
        with pytest.raises(UserError, match=words):
            sample(student, tmp_path / "samples", changed(DRAWING, settings), Progress())
    for settings, words in (
        ({"solver": "policy"}, "--solver policy is that of students"),
        ({"temperature": 0.5}, "--temperature is of students"),
        ({"renewal": 0.5}, "--renewal is of students"),
    ):
        with pytest.raises(UserError, match=words):
            sample(fm, tmp_path / "samples", changed(DRAWING, settings), Progress())


@pytest.mark.slow
def test_what_is_advised_is_advice_for_a_student(teacher_of, tmp_path, monkeypatch):
    teacher = teacher_of()
    refused(teacher, tmp_path / "student", "-m gmtool -- distill, or remove it", shard=True)

    def losses_of(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("gmtool.training.task.Task.losses", losses_of)
    with pytest.raises(MachineError) as caught:
        student_of(teacher, tmp_path / "student", micro_batch="1")
    assert str(caught.value).endswith("use --checkpoint-activations, or a smaller teacher")
    assert "checkpoint_activations" in settings_of(DistillConfig)


@pytest.mark.slow
def test_a_student_cannot_guide_and_its_noise_is_renewed_from_a_gaussian_alone(teacher_of, tmp_path):
    teacher = teacher_of()
    student = student_of(teacher, tmp_path / "student")
    guided = changed(DRAWING, {"guidance": "auto", "guide": student})
    with pytest.raises(UserError, match="is a student, which knows no velocity between"):
        sample(teacher, tmp_path / "samples", guided, Progress())
    from_mixture = student_of(teacher_of(**MM_FM), tmp_path / "mixture", evaluations=2)
    with pytest.raises(UserError, match="--renewal renews the noise of a Gaussian source"):
        sample(from_mixture, tmp_path / "samples", changed(DRAWING, {"renewal": 1.0}), Progress())


@pytest.mark.slow
def test_latents_that_are_gone_are_asked_for_or_not_needed(small, tmp_path):
    latents = tmp_path / "latents.h5"
    shutil.copyfile(small.latents("classes"), latents)
    train(latents, tmp_path / "run", TRAINING, Progress())
    latents.rename(tmp_path / "moved.h5")
    refused(tmp_path / "run", tmp_path / "student", "do not exist: give --latents, or --data-free")
    student_of(tmp_path / "run", tmp_path / "student", latents=tmp_path / "moved.h5")
    student_of(tmp_path / "run", tmp_path / "free", data_free=True)


@pytest.mark.slow
def test_a_student_is_trained_on_its_teachers_part(small, teacher_of, tmp_path):
    """Not on images that the teacher was kept from, unless all are asked for."""
    teacher = teacher_of(fraction=0.5, seed=2)
    refused(teacher, tmp_path / "other", r"with --fraction 0\.5 --seed 0 would see other images: use --fraction 0\.5")
    refused(teacher, tmp_path / "more", r"or --fraction 1 to train on all latents$", seed=2, fraction=0.7)
    trained = {}
    for name, settings in (
        ("default", {"seed": 2}),
        ("fewer", {"seed": 2, "fraction": 0.2}),
        ("all", {"fraction": 1.0}),
        ("free", {"data_free": True}),
    ):
        run = open_run(student_of(teacher, tmp_path / name, **settings))
        trained[name] = (run.part[0], sum(run.class_counts))
    # a data-free student learns of all that its teacher did
    assert trained == {"default": (0.5, 30), "fewer": (0.2, 12), "all": (1.0, 60), "free": (1.0, 30)}
    student_of(teacher, tmp_path / "default", seed=2, steps=4)
    assert open_run(student_of(teacher_of(), tmp_path / "of all", fraction=0.2, seed=1)).part == (0.2, 1)


@pytest.mark.slow
def test_a_mixture_of_a_part_teaches_no_more_than_that_part(small, tmp_path):
    """Of other images it does not know the modes."""
    gmm, run, part = tmp_path / "gmm.h5", tmp_path / "run", {"fraction": 0.5}
    fit_gmm(small.latents("classes"), gmm, changed(MIXTURE, part), Progress())
    train(small.latents("classes"), run, changed(TRAINING, {**MM_FM, **part, "gmm": gmm}), Progress())
    refused(run, tmp_path / "student", r"use --fraction 0\.5 --seed 0$", fraction=1.0)
    assert open_run(student_of(run, tmp_path / "student")).part == (0.5, 0)


@pytest.mark.slow
def test_a_data_free_student_needs_classes_that_are_known(small, teacher_of, tmp_path):
    """As an imported network may be told classes that have no names."""
    teacher = shutil.copytree(teacher_of(), tmp_path / "teacher")
    record = json.loads((teacher / "config.json").read_text())
    del record["checksum"]
    record["details"] |= {"classes": [], "class_counts": []}
    (teacher / "config.json").write_text(json.dumps(record))
    refused(teacher, tmp_path / "student", "--data-free draws classes, and .* knows none by name", data_free=True)


def test_a_loss_that_has_risen_is_told(teacher_of, tmp_path, monkeypatch):
    """A student that drifts away from the data with its teacher agrees with it ever less than at the beginning."""
    falling, risen = [*[0.5] * 100, *[9.0] * 200, *[0.4] * 100], [*[0.5] * 100, *[0.1] * 200, *[0.6] * 100]
    assert drift_note(falling, 0) is None and drift_note(risen[:-1], 0) is None
    assert "rose from 0.5 in the first 100 steps to 0.6 in the last" in str(drift_note(risen, 0))
    assert drift_note([*[0.5] * 300, *[0.54] * 100], 0) is None  # noise
    led = [*[0.1] * 50, *falling]  # while the teacher leads, the loss is small
    assert drift_note(led, 50) is None and drift_note(led, 0) is not None
    heard: list[str] = []

    class Noted(Progress):
        def note(self, message: str) -> None:
            heard.append(message)

    monkeypatch.setattr(distill_run, "LAP", 2)
    teacher = teacher_of("flat")
    distill(teacher, tmp_path / "good", changed(QUICK, {"steps": 8}), Noted())
    assert not any("the loss rose" in note for note in heard)
    distill(teacher, tmp_path / "bad", changed(QUICK, {"steps": 8, "lr": 0.2}), Noted())
    assert any("the loss rose" in note and "more --evaluations" in note for note in heard)


def test_settings_that_have_no_effect_are_refused():
    for settings, words in (
        ({"policy": "dx", "components": 4}, "--components are of a mixture"),
        ({"points": 4}, "--points are those of --policy dx"),
        ({"policy": "dx", "window": 4}, "--window is of --policy gm"),
        ({"data_free": True, "latents": Path("x")}, "--data-free uses no latents"),
        ({"data_free": True, "images": Path("x")}, "--images has no effect with --data-free"),
        ({"data_free": True, "fraction": 0.5}, "--fraction has no effect with --data-free"),
        ({"data_free": True, "eval_every": 5}, "--eval-every compares with training images"),
        ({"guidance": "auto"}, "--guidance auto needs a weaker run"),
        ({"guidance_scale": 2.0}, "--guidance-scale has no effect without"),
    ):
        with pytest.raises(UserError, match=words):
            make(DistillConfig, settings)


# --- before and beside ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_forecast_counts_the_teacher(teacher_of, tmp_path):
    teacher = teacher_of()
    by_name = {}
    for name, settings in (
        ("one", {}),
        ("guided", {"guidance": "cfg"}),
        ("free", {"data_free": True, "evaluations": 3}),
    ):
        told = forecast(teacher, tmp_path / "student", changed(QUICK, settings))
        by_name[name] = float(dict(told.work)["operations per step"].split()[0])
        assert {"--lr", "--coordinates"} <= {choice.flag for choice in told.choices}
    assert not (tmp_path / "student").exists()
    # a student's step costs three of its forward passes, and two of its teacher's, nearly as large: 5, then 7, then 15
    assert by_name["guided"] / by_name["one"] == pytest.approx(7 / 5, rel=0.05)
    assert by_name["free"] / by_name["one"] == pytest.approx(3, rel=0.01)


@pytest.mark.slow
def test_previews_and_scores_on_the_way(teacher_of, tmp_path):
    folder = student_of(teacher_of(), tmp_path / "student", preview_every=3, eval_every=3, eval_num=4)
    assert (folder / "previews" / "step-00000003.png").is_file()
    assert "frechet_distance" in (folder / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_a_teacher_without_a_record_of_latents_takes_any_of_its_shape(small, teacher_of, tmp_path):
    """As an imported one has none."""
    teacher = shutil.copytree(teacher_of(), tmp_path / "teacher")
    record = json.loads((teacher / "config.json").read_text())
    del record["checksum"]
    record["inputs"] = []
    (teacher / "config.json").write_text(json.dumps(record))
    refused(teacher, tmp_path / "student", "does not say which latents it was trained on")
    student_of(teacher, tmp_path / "student", latents=small.latents("classes"))
    with open_latents(small.latents("classes")) as known:
        write_latents(
            tmp_path / "other.h5",
            patches=iter([np.zeros((6, 4, 2, 2), np.float16)]),
            descriptors=np.zeros((6, 4), np.float32),
            labels=np.zeros(6, np.int64),
            names=[str(index) for index in range(6)],
            classes=known.classes,
            tokenizer=known.tokenizer,
            provenance=Provenance("encode", {}, ()),
        )
    with ExitStack():
        refused(teacher, tmp_path / "other", "has latents of 16 x 2 x 2, and", latents=tmp_path / "other.h5")
    refused(teacher, tmp_path / "flat", "knows 3 classes, and", latents=small.latents("flat"))


def test_the_network_of_a_student_is_found_by_its_record():
    """A record without the number of velocities, of an earlier version, means one."""
    from gmtool.nn.build import architecture_from_json, architecture_to_json
    from gmtool.nn.dit import DiTArchitecture

    record = architecture_to_json(DiTArchitecture((4, 2, 2), 1, 8, 1))
    del record["velocities"]
    assert architecture_from_json(record).velocities == 1
    several = build_network(DiTArchitecture((4, 2, 2), 1, 8, 1, velocities=3), 0)
    predicted = several(torch.zeros(2, 4, 2, 2), torch.ones(2), Conditions())
    assert predicted.shape == (2, 3, 4, 2, 2)
