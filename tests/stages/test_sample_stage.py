"""The sample stage: sample i depends on the seed and i alone, and the folder appears whole or not at all."""

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import Small
from stepping import method_for
from user import Stop

from gmtool.artifacts.gmm import open_gmm
from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.manifest import Input
from gmtool.artifacts.method_record import MethodRecord
from gmtool.artifacts.run import RunFolder, open_run
from gmtool.artifacts.safetensors_io import read_tensors, write_tensors
from gmtool.artifacts.samples import open_samples
from gmtool.cli.app import main
from gmtool.errors import MachineError, UserError
from gmtool.flow.coordinates import Whitened
from gmtool.flow.solvers import SOLVERS
from gmtool.nn.build import build_network
from gmtool.nn.dit import DiT, DiTArchitecture
from gmtool.progress import Progress
from gmtool.sampling.decoder import decoder_of
from gmtool.sampling.drawing import Drawing
from gmtool.sampling.labels import labels_of, modes_of
from gmtool.sampling.model import TrainedModel, load_model
from gmtool.sampling.plan import SamplePlan, make_plan
from gmtool.sampling.sampler import generate
from gmtool.sampling.settings import SamplingSettings, SelectionSettings
from gmtool.settings import changed, make
from gmtool.stages.sample import run as stage
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.sample.run import plan_samples, sample
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.run import train
from gmtool.tokenizers.build import build_tokenizer

QUICK = make(SampleConfig, {"num": 12, "steps": 2, "device": "cpu"})
LATENTS = DiTArchitecture((16, 2, 2), 1, 16, 2, classes=3)
TRAINING = make(TrainConfig, {"steps": 2, "batch_size": 16, "preview_every": 0, "device": "cpu", "ema": (0.5,)})
MakeRun = Callable[..., Path]


@pytest.fixture(scope="module")
def make_run(small: Small, tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """A run of two steps with these settings; each is trained once."""
    root, known = tmp_path_factory.mktemp("runs"), {}

    def make(kind: str = "classes", **settings: object) -> Path:
        key = (kind, *sorted(settings.items()))
        if key not in known:
            known[key] = root / str(len(known))
            train(small.latents(kind), known[key], changed(TRAINING, settings), Progress())
        return known[key]

    return make


UNION = {"objective": "gm-kl", "source": "gmm"}


def images(folder: Path) -> np.ndarray:
    return open_samples(folder).images()


def latents(folder: Path) -> np.ndarray:
    with open_latents(folder / "latents.h5") as file:
        return file.patches(slice(None)).astype(np.float32)


class Notes(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


def test_a_newer_checkpoint_that_is_not_whole_is_told(make_run: MakeRun, tmp_path: Path) -> None:
    folder = shutil.copytree(make_run(), tmp_path / "run")
    shutil.copytree(folder / "checkpoints/step-00000002", folder / "checkpoints/step-00000003")
    (folder / "checkpoints/step-00000003/model.safetensors").write_bytes(b"")
    notes = Notes()
    sample(folder, tmp_path / "samples", QUICK, notes)
    assert len(notes.lines) == 2 and "step-00000003 was cut short" in notes.lines[0]
    guided = changed(QUICK, {"guidance": "auto", "guidance_scale": 1.5, "guide": folder})
    assert len(plan_samples(make_run(), tmp_path / "guided", guided).drawing.notes) == 1


def test_the_default_solver_is_told_with_its_reason(make_run: MakeRun, tmp_path: Path) -> None:
    notes, folder = Notes(), make_run(objective="gm-kl")
    sample(folder, tmp_path / "samples", changed(QUICK, {"steps": 1}), notes)
    assert notes.lines == ["--solver gm-sde: at most 2 evaluations, at which images by gm-ode are speckled"]
    (choice,) = plan_samples(folder, tmp_path / "more", changed(QUICK, {"steps": 3})).forecast().choices
    assert (choice.flag, choice.value) == ("--solver", "gm-ode")
    chosen = plan_samples(folder, tmp_path / "chosen", changed(QUICK, {"steps": 1, "solver": "heun"}))
    assert not chosen.forecast().choices and chosen.plan.solver == "heun"


def test_order_1_of_a_union_is_told_with_its_reason(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(**UNION)
    notes = Notes()
    sample(folder, tmp_path / "samples", changed(QUICK, {"steps": 7, "solver": "gm-ode"}), notes)
    assert notes.lines == ["--order 1: more than 6 evaluations of a union, at which images by order 2 lose detail"]
    for chosen in ({"steps": 6, "solver": "gm-ode"}, {"steps": 7, "solver": "gm-ode", "order": 2}):
        planned = plan_samples(folder, tmp_path / "chosen", changed(QUICK, chosen))
        assert not planned.forecast().choices and planned.plan.order == 2


# --- sample i depends on the seed and i alone -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("training", "sampling"),
    [
        ({}, {}),
        ({"objective": "mm-fm"}, {}),
        (UNION, {"solver": "gm-sde", "guidance": "prob"}),
        ({"objective": "gm-kl"}, {"guidance": "prob"}),
    ],
    ids=["fm", "mm-fm", "union gm-sde", "gm-kl guided"],
)
def test_the_batch_size_changes_nothing(make_run: MakeRun, tmp_path: Path, training: dict, sampling: dict) -> None:
    for size in (1, 3, 64):
        sample(make_run(**training), tmp_path / str(size), changed(QUICK, {"batch_size": size, **sampling}), Progress())
    for size in ("1", "3"):
        np.testing.assert_allclose(latents(tmp_path / size), latents(tmp_path / "64"), atol=2e-3)
        differences = np.abs(images(tmp_path / size).astype(int) - images(tmp_path / "64"))
        assert differences.max() <= 1
    first = images(tmp_path / "64")
    assert len(np.unique(first.reshape(12, -1), axis=0)) == 12


def test_generate_is_the_same_one_by_one(small: Small, make_run: MakeRun) -> None:
    """In float32, before rounding to the file's float16."""
    loaded = load(make_run(**UNION))
    model = loaded.model
    plan = loaded.plan(guidance="prob")
    classes = torch.arange(6) % 3
    together = generate(model, plan, range(6), classes)
    apart = torch.cat([generate(model, plan, [i], classes[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(apart, together, atol=1e-4, rtol=0)
    backwards = generate(model, plan, range(5, -1, -1), classes.flip(0)).flip(0)
    torch.testing.assert_close(backwards, together, atol=1e-4, rtol=0)


def test_more_samples_begin_with_the_fewer_and_the_seed_changes_them(make_run: MakeRun, tmp_path: Path) -> None:
    for name, changes in (("few", {}), ("more", {"num": 20}), ("other", {"seed": 1})):
        sample(make_run(), tmp_path / name, changed(QUICK, changes), Progress())
    np.testing.assert_allclose(latents(tmp_path / "more")[:12], latents(tmp_path / "few"), atol=2e-3)
    assert np.abs(latents(tmp_path / "other") - latents(tmp_path / "few")).max() > 0.1


# --- the folder -------------------------------------------------------------------------------------------------------


def test_what_is_written(small: Small, make_run: MakeRun, tmp_path: Path) -> None:
    report = sample(make_run(), tmp_path / "samples", changed(QUICK, {"batch_size": 5}), Progress())
    folder = tmp_path / "samples"
    assert (report.count, report.step, report.no_images) == (12, 2, None)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("grid.png", "images", "latents.h5", "samples.npz", "sampling.json")
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]
    with np.load(folder / "samples.npz") as arrays:  # as any other tool reads it
        assert arrays.files == ["arr_0", "arr_1"]
        pictures, labels = arrays["arr_0"], arrays["arr_1"]
    assert (pictures.shape, pictures.dtype) == ((12, 8, 8, 3), np.uint8)
    assert labels.tolist() == [0, 1, 2] * 4
    assert sorted(path.name for path in (folder / "images").iterdir()) == [f"{index:06d}.png" for index in range(12)]
    for index, picture in enumerate(pictures):
        with Image.open(folder / "images" / f"{index:06d}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), picture)
    with open_latents(folder / "latents.h5") as file:
        assert file.labels.tolist() == labels.tolist()
        assert file.classes == ("a", "b", "c")
        tokenizer = build_tokenizer(file.tokenizer, torch.device("cpu"))
        decoded = tokenizer.decode(torch.from_numpy(file.patches(slice(None)).astype(np.float32)))
        assert (decoded.permute(0, 2, 3, 1).numpy().astype(int) - pictures).__abs__().max() <= 1
        described = tokenizer.describe(torch.from_numpy(pictures).permute(0, 3, 1, 2))
        np.testing.assert_allclose(file.descriptors(slice(None)), described, atol=1e-4)
    record = open_samples(folder).manifest
    assert [source.role for source in record.inputs] == ["run", "latents"]
    assert record.details["plan"]["solver"] == "euler"
    with open_latents(small.latents("classes")) as training:
        assert record.input("latents").fingerprint == training.manifest.fingerprint


class Shown(Progress):
    def __init__(self) -> None:
        self.began: list[tuple[int, int]] = []

    def begin(self, task: str, total: int, unit: str, done: int = 0) -> None:
        self.began.append((total, done))


@pytest.mark.parametrize("stopped", [1, 5, 12])
def test_an_interrupted_sampling_resumes(make_run: MakeRun, tmp_path: Path, stopped: int) -> None:
    config = changed(QUICK, {"batch_size": 4})
    sample(make_run(), tmp_path / "whole", config, Progress())
    with pytest.raises(KeyboardInterrupt):
        sample(make_run(), tmp_path / "cut", config, Stop(stopped))
    assert not (tmp_path / "cut").exists()
    half = tmp_path / ".cut.gmtool/part/.latents.h5.0123456789abcdef.gmtool-part"
    half.write_bytes(b"of a latents file, which a kill cut short")
    shown = Shown()
    sample(make_run(), tmp_path / "cut", config, shown)
    assert not list((tmp_path / "cut").glob(".*"))
    assert shown.began == [(12, -(-stopped // 4) * 4)]
    for name in ("samples.npz", "grid.png", "images/000007.png"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    np.testing.assert_array_equal(latents(tmp_path / "cut"), latents(tmp_path / "whole"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]


def test_another_plan_does_not_go_on_with_the_rest(make_run: MakeRun, tmp_path: Path) -> None:
    sample(make_run(), tmp_path / "expected", changed(QUICK, {"seed": 3}), Progress())
    with pytest.raises(KeyboardInterrupt):
        sample(make_run(), tmp_path / "samples", changed(QUICK, {"batch_size": 4}), Stop(8))
    sample(make_run(), tmp_path / "samples", changed(QUICK, {"seed": 3}), Progress())
    np.testing.assert_array_equal(images(tmp_path / "samples"), images(tmp_path / "expected"))
    assert len(list((tmp_path / "samples/images").iterdir())) == 12


def test_stopped_while_putting_together(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    sample(make_run(), tmp_path / "whole", QUICK, Progress())
    for place in (
        "stages.sample.run.write_latents",
        "stages.sample.run.image_grid",
        "artifacts.outputs.Output.publish",
    ):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(f"gmtool.{place}", stop)
            sample(make_run(), tmp_path / "cut", QUICK, Progress())
        assert not (tmp_path / "cut").exists()
    sample(make_run(), tmp_path / "cut", QUICK, Progress())
    np.testing.assert_array_equal(images(tmp_path / "cut"), images(tmp_path / "whole"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]


@pytest.mark.slow
def test_a_refused_publication_costs_no_drawing(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something of the user's in the way, or a kill between the two renames."""
    config, folder = changed(QUICK, {"batch_size": 5}), tmp_path / "samples"
    sample(make_run(), tmp_path / "whole", config, Progress())
    sample(make_run(), folder, changed(QUICK, {"num": 3}), Progress())
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target == folder:
            raise KeyboardInterrupt
        return replace(self, target)

    class Late(Progress):
        def end(self) -> None:
            (folder / "notes.txt").write_text("put there meanwhile")

    with pytest.raises(UserError, match=r"notes\.txt"):
        sample(make_run(), folder, config, Late())
    (folder / "notes.txt").unlink()
    monkeypatch.setattr(Drawing, "draw", None)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        sample(make_run(), folder, config, Progress())
    assert not folder.exists()
    sample(make_run(), folder, config, Progress())
    for name in ("samples.npz", "grid.png", *(f"images/{index:06d}.png" for index in range(12))):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    np.testing.assert_array_equal(latents(folder), latents(tmp_path / "whole"))
    assert sorted(path.name for path in folder.rglob("*")) == sorted(
        path.name for path in (tmp_path / "whole").rglob("*")
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples", "whole"]


@pytest.mark.slow
def test_a_process_of_another_plan_that_lives_on_writes_into_nobody_s_batches(
    make_run: MakeRun, tmp_path: Path
) -> None:
    folder, other = tmp_path / "samples", changed(QUICK, {"batch_size": 4, "seed": 3})
    earlier = plan_samples(make_run(), folder, changed(QUICK, {"batch_size": 4}))
    with pytest.raises(KeyboardInterrupt):
        sample(make_run(), folder, earlier.config, Stop(4))
    batches = {path.name: path.read_bytes() for path in earlier.pieces.glob("*.safetensors")}
    picture = (earlier.pieces / "images/000000.png").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        sample(make_run(), folder, other, Stop(4))
    assert batches and not earlier.pieces.exists()
    (earlier.pieces / "images").mkdir(parents=True)
    (earlier.pieces / "images/000000.png").write_bytes(picture)
    for name, content in batches.items():
        (earlier.pieces / name).write_bytes(content)
    sample(make_run(), folder, other, Progress())
    sample(make_run(), tmp_path / "whole", other, Progress())
    for name in ("samples.npz", "images/000000.png"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples", "whole"]


def test_the_batches_of_a_decoder_that_was_trained_further_are_drawn_again(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights(digest: str) -> None:
        monkeypatch.setattr(stage, "decoder_inputs", lambda source: (Input("decoder", str(source), digest),))

    monkeypatch.setattr(stage, "decoder_of", lambda run, decoder, device: decoder_of(run, None, device))
    config, shown = changed(QUICK, {"batch_size": 4, "decoder": "decoder"}), Shown()
    weights("first")
    with pytest.raises(KeyboardInterrupt):
        sample(make_run(), tmp_path / "samples", config, Stop(8))
    weights("second")
    sample(make_run(), tmp_path / "samples", config, shown)
    assert shown.began == [(12, 0)]
    assert open_samples(tmp_path / "samples").manifest.input("decoder").fingerprint == "second"


def test_an_older_folder_of_samples_is_replaced_whole(make_run: MakeRun, tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    sample(make_run(), folder, changed(QUICK, {"num": 20}), Progress())
    (folder / "metrics.json").write_text("{}")  # the scores of the older samples
    with pytest.raises(KeyboardInterrupt):
        sample(make_run(), folder, QUICK, Stop(1))
    assert len(images(folder)) == 20  # until the new ones are whole
    sample(make_run(), folder, QUICK, Progress())
    assert len(images(folder)) == len(list((folder / "images").iterdir())) == 12
    assert not (folder / "metrics.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]


def test_the_folder_where_one_stands(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for place in (Path(), folder, tmp_path):
        with pytest.raises(UserError, match="holds the current folder"):
            sample(make_run(), place, QUICK, Progress())
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_of_other_things_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="holds other things than samples"):
        sample(make_run(), tmp_path / "mine", QUICK, Progress())
    with pytest.raises(UserError, match="is a file"):
        sample(make_run(), tmp_path / "file", QUICK, Progress())
    with pytest.raises(UserError, match="holds other things than samples"):
        sample(make_run(), make_run(), QUICK, Progress())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "mine", "notes.txt"]


def test_no_room(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    monkeypatch.setattr("gmtool.artifacts.files.free_bytes", lambda path: 100)
    with pytest.raises(MachineError, match=r"needs .* KiB, but only 100 B are free"):
        sample(run, tmp_path / "samples", QUICK, Progress())
    assert list(tmp_path.iterdir()) == []


# --- classes and modes ------------------------------------------------------------------------------------------------


def test_labels(make_run: MakeRun) -> None:
    run = open_run(make_run())

    def labels(classes: str | None, num: int, of: RunFolder = run) -> list[int]:
        return labels_of(SelectionSettings(num=num, classes=classes), of).tolist()

    assert np.bincount(labels(None, 300)).tolist() == [100, 100, 100]
    assert labels(None, 5) == [0, 1, 2, 0, 1]
    assert labels("c, a", 5) == [2, 0, 2, 0, 2]
    assert labels("1", 2) == [1, 1]
    for wrong in ("d", "3", "-1", "", "a,"):
        with pytest.raises(UserError, match="is neither a class name nor a number below 3"):
            labels(wrong, 2)
    assert labels(None, 2, open_run(make_run("flat"))) == [-1, -1]
    with pytest.raises(UserError, match=r"was trained without classes \(--condition mode\)"):
        labels("1", 2, open_run(make_run("flat")))


class Exact(DiT):
    """A network that predicts the velocity 0, or z - mu for a given mu, so that samples show where they started."""

    def forward(self, x_t, t, conditions):
        self.seen = conditions
        return torch.zeros_like(x_t)


@dataclass(frozen=True)
class Loaded:
    """A run's method, and a network to draw from as it says."""

    record: MethodRecord
    model: TrainedModel

    def plan(self, **settings: Any) -> SamplePlan:
        config = changed(QUICK, settings)
        return make_plan(config.sampling, self.record, 0, config.selection.seed)


def load(path: Path, kind: type[DiT] = DiT) -> Loaded:
    """The run, with new weights."""
    run = open_run(path)
    network = build_network(run.architecture, 0) if kind is DiT else kind(run.architecture)
    with ExitStack() as stack:
        return Loaded(run.method, load_model(run, network, torch.device("cpu"), torch.float32, None, stack))


def test_modes_are_drawn_by_the_class(small: Small, make_run: MakeRun) -> None:
    """With velocity 0 a sample stays where the source put it: at its mode."""
    loaded = load(make_run(objective="mm-fm", condition="class"), Exact)
    model = loaded.model
    plan = loaded.plan(steps=1)
    weights = model.statistics.mode_weights
    assert weights is not None and weights.shape == (3, 4)
    assert (weights.sum(1) - 1).abs().max() < 1e-5
    assert (weights[0] - weights[1]).abs().max() > 0.3  # classes differ, so that it matters
    with open_gmm(small.gmm("classes")) as gmm:
        means, stds = (torch.from_numpy(moment(np.arange(4))) for moment in (gmm.patch_mean, gmm.patch_std))
    for label in range(3):
        samples = generate(model, plan, range(400), torch.full((400,), label))
        # moments of the class's mixture, latent by latent
        weight = weights[label].reshape(4, 1, 1, 1)
        mean = (weight * means).sum(0)
        variance = (weight * (stds.square() + means.square())).sum(0) - mean.square()
        error = (samples.mean(0) - mean) / (variance / 400).sqrt()
        assert error.abs().max() < 5
        torch.testing.assert_close(samples.var(0).mean(), variance.mean(), rtol=0.1, atol=0)


def test_samples_take_the_chosen_modes_in_turn(small: Small, make_run: MakeRun) -> None:
    """With velocity 0 a sample is its noise in its mode's frame; the noise is that of the drawn mode."""
    loaded = load(make_run(objective="mm-fm"), Exact)
    model = loaded.model
    plan = loaded.plan(steps=1)
    modes = modes_of(SelectionSettings(num=6, modes="3, 1"), open_run(make_run(objective="mm-fm")))
    assert modes is not None and modes.tolist() == [3, 1, 3, 1, 3, 1]
    nobody = torch.zeros(6, dtype=torch.long)
    first, second = (
        generate(model, plan, range(6), nobody, torch.tensor(order)) for order in (modes, modes[::-1].copy())
    )
    assert model.modes is not None
    noise = [
        Whitened().enter(model.statistics.normalise(drawn), model.modes.at(torch.tensor(order)))
        for order, drawn in ((modes, first), (modes[::-1].copy(), second))
    ]
    torch.testing.assert_close(noise[0], noise[1], atol=1e-4, rtol=0)
    assert (first - second).abs().max() > 0.1


def test_modes_reach_the_condition_too(small: Small, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(condition="mode")
    loaded = load(run, Exact)
    model = loaded.model
    generate(model, loaded.plan(), range(3), torch.zeros(3, dtype=torch.long), torch.tensor([2, 0, 2]))
    assert model.network.seen.modes.tolist() == [2, 0, 2]
    sample(run, tmp_path / "samples", changed(QUICK, {"num": 4, "modes": "2"}), Progress())
    assert open_samples(tmp_path / "samples").manifest.config["modes"] == "2"


@pytest.mark.parametrize(
    ("training", "modes", "message"),
    [
        ({}, "1", "draws without modes; train with --coupling mode or --condition mode"),
        ({"source": "gmm", "condition": "class"}, "1", "draws without modes"),
        ({"objective": "mm-fm"}, "4", "--modes: '4' is not a number below 4"),
        ({"objective": "mm-fm"}, "1,,2", "--modes: '' is not a number below 4"),
        ({"objective": "mm-fm"}, "-1", "--modes: '-1' is not a number below 4"),
    ],
)
def test_modes_that_cannot_be_chosen(
    make_run: MakeRun, tmp_path: Path, training: dict, modes: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        sample(make_run(**training), tmp_path / "samples", changed(QUICK, {"modes": modes}), Progress())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [{"condition": "class"}, {"condition": "mode"}, {"coupling": "batch-ot"}])
def test_a_source_apart_from_the_data_is_the_whole_mixture(small: Small, make_run: MakeRun, settings: dict) -> None:
    """Without mode coupling noise is independent of class and mode in training: so must the start be in sampling."""
    loaded = load(make_run(**({"source": "gmm"} | settings)), Exact)
    model = loaded.model
    plan = loaded.plan(steps=1)
    samples = generate(model, plan, range(600), torch.zeros(600, dtype=torch.long))
    with open_gmm(small.gmm("classes")) as gmm:
        means = torch.from_numpy(gmm.patch_mean(np.arange(4)))
        stds = torch.from_numpy(gmm.patch_std(np.arange(4)))
        weight = torch.from_numpy(gmm.weights).float().reshape(4, 1, 1, 1)
    mean = (weight * means).sum(0)
    variance = (weight * (stds.square() + means.square())).sum(0) - mean.square()
    assert ((samples.mean(0) - mean) / (variance / 600).sqrt()).abs().max() < 5
    if settings == {"condition": "mode"}:
        seen = model.network.seen.modes
        for mode in seen.unique():
            part = samples[seen == mode]
            assert ((part.mean(0) - mean) / (variance / len(part)).sqrt()).abs().max() < 5


def test_the_union_maps_back_from_the_modes_coordinates(small: Small, make_run: MakeRun) -> None:
    """A mixture at velocity mean z (that is x = 0 in y, std ~ 0) gives the mode's own mean."""
    from gmtool.mixture.gaussian_mixture import GaussianMixture

    class AtTheMean(DiT):
        def forward(self, x_t, t, conditions):
            self.seen = conditions
            means = (x_t / t.reshape(-1, 1, 1, 1)).unsqueeze(1)
            flat = torch.zeros_like(means[:, :, :1])
            return GaussianMixture(means, flat, torch.full_like(flat[..., :1, :1], 1e-10))

    loaded = load(make_run(**UNION), AtTheMean)
    model = loaded.model
    samples = generate(model, loaded.plan(), range(20), torch.arange(20) % 3)
    with open_gmm(small.gmm("classes")) as gmm:
        means = torch.from_numpy(gmm.patch_mean(model.network.seen.modes.numpy()))
    torch.testing.assert_close(samples, means, atol=1e-3, rtol=1e-3)


# --- plans ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("training", [{}, {"objective": "gm-kl"}, UNION], ids=["fm", "gm-kl", "union"])
@pytest.mark.parametrize("guidance", ["none", "cfg", "prob", "prob-weights"])
@pytest.mark.parametrize("solver", [None, *SOLVERS])
def test_every_guidance_with_every_solver(
    small: Small, make_run: MakeRun, training: dict, guidance: str, solver: str | None
) -> None:
    """It draws other samples with guidance, or says which flag to change."""
    loaded = load_trained(make_run(**training))
    model = loaded.model
    gm = training != {}
    mixture_solver = solver in ("gm-ode", "gm-sde")
    possible = guidance not in ("prob", "prob-weights") or (gm and (solver is None or mixture_solver))
    possible = possible and (guidance != "cfg" or not mixture_solver) and (gm or not mixture_solver)
    possible = possible and solver != "policy"  # that of students
    if not possible:
        with pytest.raises(UserError, match=r"--solver|--objective|--guidance"):
            loaded.plan(guidance=guidance, solver=solver)
        return
    plan = loaded.plan(steps=3, guidance=guidance, solver=solver)
    samples = generate(model, plan, range(4), torch.arange(4) % 3)
    assert samples.shape == (4, 16, 2, 2)
    assert torch.isfinite(samples).all()
    if guidance != "none":
        unguided = loaded.plan(steps=3, solver=plan.solver)
        assert (generate(model, unguided, range(4), torch.arange(4) % 3) - samples).abs().max() > 1e-4


def load_trained(path: Path) -> Loaded:
    """The run, with weights far enough from their start that the labels matter."""
    loaded = load(path)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in loaded.model.network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))
    return loaded


def test_guidance_of_strength_nothing_changes_nothing(small: Small, make_run: MakeRun) -> None:
    for training, guidance, scale in (({}, "cfg", 1.0), ({"objective": "gm-kl"}, "prob", 0.0)):
        loaded = load_trained(make_run(**training))
        model = loaded.model
        guided = loaded.plan(guidance=guidance, guidance_scale=scale)
        classes = torch.arange(4) % 3
        expected = generate(model, loaded.plan(), range(4), classes)
        torch.testing.assert_close(generate(model, guided, range(4), classes), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("training", "sampling", "expected"),
    [
        ({}, {}, ("euler", 1, 1, 0.0)),
        ({}, {"solver": "heun"}, ("heun", 2, 1, 0.0)),
        ({}, {"guidance": "cfg"}, ("euler", 1, 1, 1.5)),
        ({"objective": "gm-kl"}, {}, ("gm-ode", 2, 16, 0.0)),
        ({"objective": "gm-kl"}, {"steps": 32}, ("gm-ode", 2, 4, 0.0)),
        ({"objective": "gm-kl"}, {"steps": 500}, ("gm-ode", 2, 1, 0.0)),
        ({"objective": "gm-kl"}, {"guidance": "prob"}, ("gm-ode", 2, 16, 0.04)),
        ({"objective": "gm-kl"}, {"guidance": "cfg"}, ("euler", 1, 1, 1.5)),
        ({"objective": "gm-kl"}, {"solver": "gm-sde", "order": 1}, ("gm-sde", 1, 1, 0.0)),
    ],
)
def test_plans_follow_the_objective(training: dict, sampling: dict, expected: tuple) -> None:
    plan = make_plan(SamplingSettings(**sampling), method_for(LATENTS, training), 0, 0)
    assert (plan.solver, plan.order, plan.substeps, plan.scale) == expected


@pytest.mark.parametrize(
    ("training", "sampling", "words"),
    [
        ({}, {"solver": "gm-ode"}, "--solver gm-ode needs a mixture head: .* --objective fm; train with gm-kl"),
        ({"objective": "mm-fm"}, {"guidance": "prob"}, "--guidance prob needs a mixture head: .* --objective fm"),
        ({"condition": "none"}, {"guidance": "cfg"}, "--guidance cfg needs a run with conditions"),
        ({"condition": "none", "objective": "gm-kl"}, {"guidance": "prob"}, "--condition class or mode"),
        ({"condition": "mode", **UNION}, {"guidance": "prob"}, "its coordinates and cannot be hidden"),
        ({"dropout": 0.0}, {"guidance": "cfg"}, "trained with --dropout above 0"),
    ],
)
def test_what_a_run_cannot_do(training: dict, sampling: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_plan(SamplingSettings(**sampling), method_for(LATENTS, {"condition": "class", **training}), 0, 0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "--steps must be at least 1"),
        ({"num": 0}, "--num must be at least 1"),
        ({"ema": "0.9", "weights": "model"}, "--ema 0.9 has no effect with --weights model"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict, words: str) -> None:
    """Those of solver and guidance: see tests/sampling/test_plan.py."""
    with pytest.raises(UserError, match=words):
        make(SampleConfig, settings)


# --- checkpoints, weights, mixtures, decoders -------------------------------------------------------------------------


def test_the_average_that_is_sampled(make_run: MakeRun, tmp_path: Path) -> None:
    """The first by default; each gives other images; one that is not kept is named with those that are."""
    run = make_run(ema=(0.2, 0.01), ema_power=(0.1,), warmup=0, lr=0.01)
    names = (None, "0.2", "0.01", "power-0.1")
    for name in names:
        sample(run, tmp_path / str(name), changed(QUICK, {"ema": name}), Progress())
    by_name = {name: latents(tmp_path / str(name)) for name in names}
    np.testing.assert_array_equal(by_name[None], by_name["0.2"])
    assert np.abs(by_name["0.2"] - by_name["0.01"]).max() > 1e-3
    assert np.abs(by_name["0.2"] - by_name["power-0.1"]).max() > 1e-3
    with pytest.raises(UserError, match=r"--ema 0.9: the run keeps 0.2, 0.01, power-0.1"):
        sample(run, tmp_path / "none", changed(QUICK, {"ema": "0.9"}), Progress())
    with pytest.raises(UserError, match=r"--ema 0.2 has no effect with --weights model"):
        changed(QUICK, {"ema": "0.2", "weights": "model"})


def test_checkpoints_and_weights(small: Small, tmp_path: Path) -> None:
    config = changed(TRAINING, {"steps": 4, "save_every": 2})
    train(small.latents("classes"), tmp_path / "run", config, Progress())
    report = sample(tmp_path / "run", tmp_path / "newest", QUICK, Progress())
    assert report.step == 4
    assert sample(tmp_path / "run", tmp_path / "older", changed(QUICK, {"checkpoint": 2}), Progress()).step == 2
    sample(tmp_path / "run", tmp_path / "model", changed(QUICK, {"weights": "model"}), Progress())
    drawn = [latents(tmp_path / name) for name in ("newest", "older", "model")]
    assert all(np.abs(drawn[i] - drawn[j]).max() > 0 for i in range(3) for j in range(i))
    with pytest.raises(UserError, match=r"--checkpoint 3: .* has 2, 4"):
        sample(tmp_path / "run", tmp_path / "none", changed(QUICK, {"checkpoint": 3}), Progress())
    weights = tmp_path / "run/checkpoints/step-00000004/ema.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))  # one cut short would be passed over
    with pytest.raises(UserError, match=r"ema.safetensors is damaged .*: remove it to use an older checkpoint"):
        sample(tmp_path / "run", tmp_path / "none", QUICK, Progress())
    assert not (tmp_path / "none").exists()


def test_a_run_without_checkpoints(small: Small, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(small.latents("classes"), tmp_path / "run", TRAINING, Stop(1))
    with pytest.raises(UserError, match=r"holds no checkpoint yet: let `gmtool train` reach"):
        sample(tmp_path / "run", tmp_path / "samples", QUICK, Progress())


def test_the_mixture_is_found_from_elsewhere(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained with relative paths in one folder, sampled from another."""
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(small.latents("classes"), work)
    shutil.copy(small.gmm("classes"), work)
    monkeypatch.chdir(work)
    train(Path("latents.h5"), Path("run"), changed(TRAINING, {"objective": "mm-fm"}), Progress())
    monkeypatch.chdir(tmp_path)
    sample(Path("work/run"), Path("samples"), QUICK, Progress())
    # moved, it is asked for, and another one is refused
    (work / "gmm.h5").rename(tmp_path / "moved.h5")
    with pytest.raises(UserError, match=r"work/gmm.h5 does not exist"):
        sample(Path("work/run"), Path("samples"), QUICK, Progress())
    sample(Path("work/run"), Path("samples"), changed(QUICK, {"gmm": Path("moved.h5")}), Progress())
    with pytest.raises(UserError, match="was trained with another mixture than"):
        sample(Path("work/run"), Path("samples"), changed(QUICK, {"gmm": small.gmm("flat")}), Progress())


def test_a_decoder_for_pixels_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--decoder is for latents of an encoder"):
        sample(make_run(), tmp_path / "samples", changed(QUICK, {"decoder": "some/decoder"}), Progress())


def test_weights_that_give_no_numbers(make_run: MakeRun, tmp_path: Path) -> None:
    shutil.copytree(make_run(), tmp_path / "run")
    file = next((tmp_path / "run/checkpoints").iterdir()) / "ema.safetensors"
    write_tensors(file, {name: tensor * float("nan") for name, tensor in read_tensors(file).items()})
    with pytest.raises(UserError, match="the samples are not finite"):
        sample(tmp_path / "run", tmp_path / "samples", QUICK, Progress())
    assert not (tmp_path / "samples").exists()


def test_samples_that_diverged(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Drawing.draw
    monkeypatch.setattr(Drawing, "draw", lambda *arguments: 1e6 * draw(*arguments))
    with pytest.raises(UserError, match="of the samples are beyond the range of float16: use a smaller --guidance"):
        sample(make_run(), tmp_path / "samples", QUICK, Progress())


@pytest.mark.parametrize("inputs", [True, False])
def test_the_next_command_can_work(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], inputs: bool
) -> None:
    """The run may say which latents it was trained on, or not, as an imported one."""
    folder = shutil.copytree(make_run(), tmp_path / "run")
    if not inputs:
        record = json.loads((folder / "config.json").read_text())
        del record["checksum"]
        (folder / "config.json").write_text(json.dumps({**record, "inputs": []}))
    samples = tmp_path / "samples"
    assert main(["sample", str(folder), str(samples), "--num", "1", "--steps", "1", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert ": 1 sample of step 2 by " in shown
    assert shown.endswith(f"Next: gmtool eval {samples}{'' if inputs else ' --reference IMAGES'}\n")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', "\x00\xff"])
def test_records_that_cannot_be_read(make_run: MakeRun, tmp_path: Path, content: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"config.json holds no readable gmtool manifest"):
        open_run(tmp_path / "run")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples/sampling.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"sampling.json holds no readable gmtool manifest"):
        open_samples(tmp_path / "samples")


def test_records_of_another_version(make_run: MakeRun, tmp_path: Path) -> None:
    shutil.copytree(make_run(), tmp_path / "run")
    record = tmp_path / "run/config.json"
    text = json.loads(record.read_text())
    del text["checksum"]
    for changes, words in (
        ({"format": 99, "gmtool": "9.0"}, "written by gmtool 9.0, newer than this one"),
        ({"config": {}}, "does not say how the run was trained"),
        ({"config": text["config"] | {"coupling": "novelty"}}, "does not say how the run was trained"),
        ({"details": {}}, "written by another gmtool version"),
        ({"details": text["details"] | {"architecture": {"shape": [1, 1, 1], "novelty": 2}}}, "another gmtool version"),
        ({"kind": "samples"}, "is a folder of samples, not a training run: give what `gmtool train` writes"),
    ):
        record.write_text(json.dumps(text | changes))
        with pytest.raises(UserError, match=words):
            open_run(tmp_path / "run")
