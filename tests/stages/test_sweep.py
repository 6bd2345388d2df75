"""The sweep stage: its points, the same figures as sample and eval, resuming, sharing, and what is refused."""

import errno
import json
import os
import re
import shlex
from pathlib import Path

import pytest
from small import Small
from user import Stop, torchrun

from gmtool.artifacts.manifest import Input
from gmtool.artifacts.run import open_run
from gmtool.cli.app import main
from gmtool.distributed import World
from gmtool.errors import MachineError, NotFinite, UserError
from gmtool.evaluation.report import parse_report
from gmtool.evaluation.sweep_table import Axis, read_sweep
from gmtool.progress import Progress
from gmtool.sampling.decoder import decoder_of
from gmtool.sampling.drawing import Drawing
from gmtool.settings import changed, make
from gmtool.stages.sweep import run as stage
from gmtool.stages.sweep.config import SweepConfig
from gmtool.stages.sweep.plan import places
from gmtool.stages.sweep.points import Grid, plan_grid
from gmtool.stages.sweep.run import SweepTask, finished, shared, sweep
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.run import train

TRAINING = make(TrainConfig, {"steps": 2, "batch_size": 16, "preview_every": 0, "device": "cpu", "ema": (0.5, 0.9)})
QUICK = {"num": (12,), "steps": (1, 2), "device": "cpu", "features": "tokenizer"}


@pytest.fixture(scope="module")
def runs(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the runs ``velocity`` and ``mixture``, of two steps."""
    root = tmp_path_factory.mktemp("runs")
    train(small.latents("classes"), root / "velocity", TRAINING, Progress())
    train(small.latents("classes"), root / "mixture", changed(TRAINING, {"objective": "gm-kl"}), Progress())
    train(small.latents("flat"), root / "flat", TRAINING, Progress())
    return root


def config(**values: object) -> SweepConfig:
    return make(SweepConfig, {**QUICK, **values})


def grid(runs: Path, *names: str, **values: object) -> Grid:
    return plan_grid(config(**values), [open_run(runs / name) for name in names])


def settings(planned: Grid) -> list[dict]:
    """The settings of the points, in the order of their solvers."""
    return sorted((dict(point.settings) for point in planned.points), key=lambda point: point["solver"])


# --- the points -------------------------------------------------------------------------------------------------------


def test_the_points_are_all_combinations_and_seeds(runs: Path) -> None:
    planned = grid(runs, "mixture", steps=(1, 3), solver=("gm-ode", "gm-sde"), seeds=2, seed=5)
    assert planned.axes == (Axis("steps", (1, 3)), Axis("solver", ("gm-ode", "gm-sde")))
    assert [(*point.settings.values(), point.drawing.plan.seed) for point in planned.points] == [
        (steps, solver, seed) for steps in (1, 3) for solver in ("gm-ode", "gm-sde") for seed in (5, 6)
    ]
    assert [point.evaluations for point in planned.points] == [1] * 4 + [3] * 4
    assert (planned.skipped, planned.repeated) == ((), 0)


def test_the_same_weights_stand_together(runs: Path) -> None:
    planned = grid(runs, "mixture", "velocity", ema=("0.5", "0.9"), guidance=("none",))
    weights = [point.drawing.weights for point in planned.points]
    assert len(weights) == 8 and len(set(weights)) == 4
    assert weights == sorted(weights, key=weights.index)


def test_a_setting_without_effect_is_left_out_and_drawn_once(runs: Path) -> None:
    """No scale without guidance, no sub-steps of gm-sde."""
    planned = grid(
        runs, "mixture", steps=(2,), guidance=("none", "prob"), guidance_scale=(0.1, 0.2), solver=("gm-ode", "gm-sde")
    )
    assert settings(planned) == [
        {"solver": "gm-ode", "guidance": "none"},
        {"solver": "gm-ode", "guidance": "prob", "guidance_scale": 0.1},
        {"solver": "gm-ode", "guidance": "prob", "guidance_scale": 0.2},
        {"solver": "gm-sde", "guidance": "none"},
        {"solver": "gm-sde", "guidance": "prob", "guidance_scale": 0.1},
        {"solver": "gm-sde", "guidance": "prob", "guidance_scale": 0.2},
    ]
    assert planned.repeated == 2 and planned.skipped == ()
    planned = grid(runs, "mixture", steps=(2,), solver=("gm-ode", "gm-sde"), substeps=(4, 8))
    assert settings(planned) == [
        {"solver": "gm-ode", "substeps": 4},
        {"solver": "gm-ode", "substeps": 8},
        {"solver": "gm-sde"},
    ]


def test_what_sample_would_refuse_is_skipped_and_counted(runs: Path) -> None:
    """A scale of one scheme is none of the other; a run of velocities has no gm-ode."""
    planned = grid(
        runs,
        "mixture",
        steps=(2,),
        solver=("heun", "gm-ode"),
        guidance=("cfg", "prob"),
        guidance_scale=(0.5, 2.0),
        seeds=3,
    )
    assert settings(planned)[::3] == [
        {"solver": "gm-ode", "guidance": "prob", "guidance_scale": 0.5},
        {"solver": "heun", "guidance": "cfg", "guidance_scale": 2.0},
    ]
    assert sum(reason.count for reason in planned.skipped) == 3 * 6
    assert any(
        "--guidance-scale of prob with gm-ode is in [0, 1), not 2" in reason.reason for reason in planned.skipped
    )
    planned = grid(runs, "mixture", "velocity", steps=(2,), solver=("gm-ode", "euler"))
    assert [(point.run.path.name, point.settings["solver"]) for point in planned.points] == [
        ("mixture", "gm-ode"),
        ("mixture", "euler"),
        ("velocity", "euler"),
    ]


def test_what_is_refused_without_a_setting_counts_once(runs: Path) -> None:
    """Of the run of velocities: gm-ode unguided, whatever the scale, and both solvers with two scales of prob."""
    planned = grid(
        runs,
        "mixture",
        "velocity",
        steps=(2,),
        solver=("gm-ode", "euler"),
        guidance=("none", "prob"),
        guidance_scale=(0.1, 0.2),
    )
    assert sum(reason.count for reason in planned.skipped) == 2 + 1 + 2 + 2
    assert len(planned.points) == 4 + 1 and planned.repeated == 3


@pytest.mark.parametrize(
    ("names", "values", "words"),
    [
        (["velocity"], {"solver": ("gm-ode", "euler")}, "--solver gm-ode is left without any point: .*mixture head"),
        (["mixture", "velocity"], {"solver": ("gm-ode",)}, "velocity is left without any point: .*mixture head"),
        (["mixture"], {"guidance": ("prob",), "guidance_scale": (0.5, 1.0)}, "--guidance-scale 1.0 is left without"),
        (["mixture"], {"guidance_scale": (0.5, 0.6)}, "--guidance-scale 0.5 is left without .*without --guidance"),
        (["mixture"], {"solver": ("gm-sde",), "substeps": (8,)}, "--substeps 8 is left without .*belongs to gm-ode"),
        (["mixture"], {"ema": ("0.5", "0.7")}, "--ema 0.7 is left without any point"),
        (["mixture"], {"checkpoint": (1, 2)}, "--checkpoint 1 is left without any point"),
        (["mixture"], {"classes": ("9",)}, "--classes: '9' is neither a class name"),
        (["mixture"], {"guidance_scale": tuple(range(200)), "num": tuple(range(2, 200))}, "the grid has 79,200 points"),
    ],
)
def test_a_value_that_no_point_has_is_refused(runs: Path, names: list[str], values: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        grid(runs, *names, **values)


def test_the_work_is_shared_evenly(runs: Path) -> None:
    planned = grid(runs, "velocity", steps=(1, 2, 4, 8), seeds=2)
    tasks = [SweepTask(point, str(number)) for number, point in enumerate(planned.points)]
    parts = [shared(tasks, World(rank, 2)) for rank in range(2)]
    assert sorted(int(task.key) for part in parts for task in part) == list(range(8))
    assert len({sum(task.point.work for task in part) for part in parts}) == 1


def test_where_a_sweep_goes(runs: Path, tmp_path: Path) -> None:
    first, second = runs / "mixture", runs / "velocity"
    for paths, output, expected in (
        ([first], None, ((first,), Path("sweep"))),
        ([first, tmp_path / "new"], None, ((first,), tmp_path / "new")),
        ([first, second], None, ((first, second), Path("sweep"))),
        ([first, second, tmp_path], None, ((first, second), tmp_path)),
        ([first, second], tmp_path, ((first, second), tmp_path)),
        ([first, tmp_path / "new"], tmp_path, ((first, tmp_path / "new"), tmp_path)),
    ):
        assert places(paths, output) == expected


# --- the figures ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("held_out", [False, True], ids=["training images", "other images"])
def test_a_point_s_command_gives_its_figures(
    runs: Path, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_out: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    reference = {"reference": small.flat / "images"} if held_out else {}
    guided = {"guidance": ("none", "prob"), "guidance_scale": (0.3,), "seed": 3, "seeds": 2}
    report = sweep([runs / "mixture", Path("out")], None, config(**guided, **reference, batch_size=5), Progress())
    assert len(report.sweep.points) == report.drawn == 8
    for point in report.sweep.points[1::4]:
        for command in point.command.split(" && "):
            name, *arguments = shlex.split(command)
            assert name == "gmtool" and main(arguments) == 0
        samples = re.search(r"samples-\w+", point.command)
        assert samples is not None
        alone = parse_report((tmp_path / samples.group() / "metrics.json").read_text())
        assert alone.figures == point.figures
        assert {"frechet_distance", "precision", "recall", "magnitude"} <= {figure.metric for figure in point.figures}


@pytest.mark.slow
def test_what_is_written(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    values = config(seeds=2, steps=(1, 2, 4))
    report = sweep([runs / "mixture", runs / "velocity", folder], None, values, Progress())
    assert sorted(path.name for path in folder.iterdir()) == [
        *("precision-recall.png", "saturation.png", "score.png", "sweep.csv", "sweep.json")
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]
    assert read_sweep(folder) == report.sweep
    assert report.sweep.axes == (Axis("run", (str(runs / "mixture"), str(runs / "velocity"))), Axis("steps", (1, 2, 4)))
    assert len((folder / "sweep.csv").read_text().splitlines()) == 1 + 12
    values = {figure.real.value for point in report.sweep.points for figure in point.figures[:1]}
    assert len(values) == 1  # real images are the same in the place of all samples
    manifest = json.loads((folder / "sweep.json").read_text())
    assert [source["role"] for source in manifest["inputs"]] == ["run", "latents", "run"]
    assert manifest["config"]["steps"] == [1, 2, 4]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_a_stopped_sweep_resumes_to_the_same_bytes(runs: Path, tmp_path: Path) -> None:
    values = config(seeds=2)
    sweep([runs / "mixture", tmp_path / "whole"], None, values, Progress())
    drawn = []
    for units in (30, 30, 20):  # evaluations: a point of 12 samples has 12 or 24
        with pytest.raises(KeyboardInterrupt):
            sweep([runs / "mixture", tmp_path / "cut"], None, values, Stop(units))
        assert not (tmp_path / "cut").exists()
        drawn.append(len(finished(tmp_path / ".cut.gmtool/part")))
    assert drawn == [2, 3, 3]
    report = sweep([runs / "mixture", tmp_path / "cut"], None, values, Progress())
    assert report.drawn == 4 - drawn[-1]
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]


@pytest.mark.slow
def test_a_larger_grid_draws_only_what_is_new(runs: Path, tmp_path: Path) -> None:
    paths = [runs / "mixture", tmp_path / "sweep"]
    first = sweep(paths, None, config(seeds=2), Progress())
    larger = sweep(paths, None, config(seeds=2, steps=(1, 2, 3)), Progress())
    assert (first.drawn, larger.drawn) == (4, 2)
    assert larger.sweep.points[:4] == first.sweep.points
    other = sweep(paths, None, config(seeds=2, num=(10,)), Progress())
    assert other.drawn == 4
    apart = sweep([runs / "mixture", tmp_path / "apart"], None, config(seeds=2, steps=(1, 2, 3)), Progress())
    assert apart.sweep == larger.sweep


@pytest.mark.slow
def test_damaged_points_are_drawn_again(runs: Path, tmp_path: Path) -> None:
    paths, values = [runs / "mixture", tmp_path / "sweep"], config(seeds=2)
    with pytest.raises(KeyboardInterrupt):
        sweep(paths, None, values, Stop(50))
    points = sorted((tmp_path / ".sweep.gmtool/part/points").iterdir())
    assert len(points) > 1
    points[0].write_text(points[0].read_text()[:100])
    (tmp_path / ".sweep.gmtool/.images.npy.7.gmtool-part").write_text("of a process that was killed")
    assert sweep(paths, None, values, Progress()).drawn == 4 - len(points) + 1
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]


@pytest.mark.slow
def test_points_of_a_decoder_that_was_trained_further_are_drawn_again(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "decoder_of", lambda run, decoder, device: decoder_of(run, None, device))
    drawn = []
    for digest in ("first", "first", "second"):
        monkeypatch.setattr(
            stage, "decoder_inputs", lambda source, digest=digest: (Input("decoder", str(source), digest),)
        )
        values = config(steps=(1,), decoder="decoder")
        drawn.append(sweep([runs / "velocity", tmp_path / "sweep"], None, values, Progress()).drawn)
    assert drawn == [1, 0, 1]
    inputs = json.loads((tmp_path / "sweep/sweep.json").read_text())["inputs"]
    assert inputs[-1] == {"role": "decoder", "path": "decoder", "fingerprint": "second"}


def test_a_disk_that_cannot_hold_the_images_is_told(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than by SIGBUS, when a point is drawn into memory that has no place on the disk."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(MachineError, match="the disk is full"):
        sweep([runs / "velocity", tmp_path / "sweep"], None, config(steps=(1,)), Progress())


def test_samples_that_are_not_finite_have_no_figures(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, draw = [], Drawing.draw

    class Noted(Progress):
        def note(self, message: str) -> None:
            notes.append(message)

    def broken(self: Drawing, *arguments: object) -> object:
        if self.plan.steps == 1:
            raise NotFinite("the samples are not finite: try --precision float32")
        return draw(self, *arguments)

    monkeypatch.setattr(Drawing, "draw", broken)
    report = sweep([runs / "mixture", tmp_path / "sweep"], None, config(), Noted())
    assert [bool(point.figures) for point in report.sweep.points] == [False, True]
    assert any("1 step, " in note and "no figures, the samples are not finite" in note for note in notes)
    assert (tmp_path / "sweep/score.png").exists()


@pytest.mark.slow
def test_two_processes_share_the_points(runs: Path, tmp_path: Path) -> None:
    flags = ["--steps", "1,2,4", "--num", "12", "--seeds", "2", "--features", "tokenizer", "--device", "cpu"]
    assert main(["sweep", str(runs / "mixture"), str(tmp_path / "one"), *flags]) == 0
    done = torchrun(["-m", "gmtool", "--", "sweep", str(runs / "mixture"), str(tmp_path / "two"), *flags], tmp_path)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "two") == content(tmp_path / "one")
    assert " ".join(done.stdout.split()).count("two: 6 points") == 1


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--steps", "1,2", "--num", "12", "--features", "tokenizer", "--device", "cpu"]
    assert main(["sweep", str(runs / "mixture"), str(tmp_path / "sweep"), *flags]) == 0
    shown = capsys.readouterr()
    words = " ".join(shown.out.split())
    for expected in ("best Fréchet distance", "gmtool sample", "&& gmtool eval samples-", "2 points", "score.png"):
        assert expected in words
    report = read_sweep(tmp_path / "sweep")
    best = min(report.points, key=lambda point: point.figure("frechet_distance").generated.value)
    assert best.command in shown.out
    assert main(["sweep", str(runs / "mixture"), str(tmp_path / "sweep"), *flags]) == 0
    assert "(0 drawn now, the others earlier)" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "sweep"), "--verify"]) == 0
    assert "is a sweep, made by gmtool sweep" in capsys.readouterr().out


@pytest.mark.slow
def test_a_dry_run_writes_nothing(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--steps", "2,4", "--solver", "gm-ode,gm-sde", "--guidance", "none,prob", "--guidance-scale", "0.1,0.2"]
    flags += ["--num", "12", "--seeds", "3", "--features", "tokenizer", "--device", "cpu", "--dry-run"]
    assert main(["sweep", str(runs / "mixture"), str(tmp_path / "sweep"), *flags]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in (
        "points 36",
        "steps 2, 4",
        "solver gm-ode, gm-sde",
        "network evaluations of a sample 2 to 8",
        f"network evaluations in all {12 * 3 * 2 * (2 + 4 + 2 * (4 + 8)):,}",
        "samples 432",
        "drawn once 12 repeated points",
        "time about 0:",
    ):
        assert words in shown, words
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_dry_run_takes_no_weights(runs: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    flags = ["--steps", "2", "--num", "12", "--features", "inception", "--device", "cpu", "--dry-run"]
    assert main(["sweep", str(runs / "mixture"), str(tmp_path / "sweep"), *flags]) == 0
    shown = capsys.readouterr().out
    assert "inception" in shown and "about 0:" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere does not exist: give the folder that `gmtool train` writes"),
        (["mixture", "mixture"], "mixture is given twice: remove one of them"),
        (["mixture", "file"], "file is a file: choose another folder"),
        (["mixture", "full"], "full holds other things than a sweep: choose another folder"),
        (["mixture", "velocity", "flat"], "were trained on other images than each other: give those to compare"),
        (["mixture", "--num", "1,20"], "--num 1: a distribution takes 2 images at least"),
        (["mixture", "--steps", "1,x"], "--steps: 'x' is no whole number"),
        (["mixture", "--steps", "0"], "--steps must be at least 1, not 0"),
        (["mixture", "--solver", "gm-ode,rk4"], "--solver must be one of"),
        (["mixture", "--seeds", "0"], "--seeds must be at least 1"),
        (["mixture", "--guidance-scale", "0.1,0.2"], "--guidance-scale 0.1 is left without any point"),
        (["mixture", "--reference", "nowhere"], "--reference nowhere does not exist"),
        (["mixture", "--output", "full"], "full holds other things than a sweep"),
    ],
)
def test_what_is_wrong_is_one_line(
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    for name in ("mixture", "velocity", "flat"):
        (tmp_path / name).symlink_to(runs / name)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["sweep", *arguments, "--features", "tokenizer", "--device", "cpu"]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and words in shown
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_preset_gives_values(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.toml").write_text(
        '[sweep]\nsteps = [1, 3]\nguidance = ["prob"]\nguidance-scale = "0:0.4:3"\nnum = [12]\nfeatures = "tokenizer"'
    )
    flags = ["--preset", str(tmp_path / "mine.toml"), "--device", "cpu", "--steps", "2", "--dry-run"]
    assert main(["sweep", str(runs / "mixture"), str(tmp_path / "sweep"), *flags]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "points 3" in shown and "guidance scale 0, 0.2, 0.4" in shown


@pytest.mark.parametrize("name", ["sweep-guidance-gmflow", "sweep-steps-mm-fm"])
@pytest.mark.slow
def test_the_papers_figures(name: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--preset", name, "--num", "12", "--features", "tokenizer", "--device", "cpu", "--dry-run"]
    assert main(["sweep", str(runs / "mixture"), str(tmp_path / "sweep"), *flags]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    expected = {"sweep-guidance-gmflow": "points 80", "sweep-steps-mm-fm": "steps 5, 7, 10, 25, 50"}
    assert expected[name] in shown
