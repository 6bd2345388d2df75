"""gmtool likelihood: runs whose velocity is nearly 0, whose density is their source's; and what cannot be computed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import MIXTURE, Small

from gmtool.artifacts.gmm import open_gmm
from gmtool.artifacts.latents import Provenance, open_latents, write_latents
from gmtool.artifacts.run import CONFIG, STATISTICS, open_run, rewrite
from gmtool.artifacts.safetensors_io import read_tensors, write_tensors
from gmtool.cli.app import main
from gmtool.nn.architecture import Conditions
from gmtool.progress import Progress
from gmtool.sampling.model import TrainedModel
from gmtool.settings import make
from gmtool.stages.fit_gmm.run import fit_gmm
from gmtool.stages.likelihood.config import LikelihoodConfig
from gmtool.stages.likelihood.report import LikelihoodReport
from gmtool.stages.likelihood.run import likelihood
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.run import train
from gmtool.training.batches import fresh_assignments

TRAINING = {"steps": 1, "batch_size": 16, "preview_every": 0, "device": "cpu", "lr": 1e-6}
FEW = make(LikelihoodConfig, {"num": 20, "batch_size": 7, "device": "cpu", "times": 2})


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where likelihood.json is written."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def runs(small: Small, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of one step, whose heads are as good as 0."""
    root = tmp_path_factory.mktemp("likelihood")
    settings = {
        "fm": {"objective": "fm", "condition": "class"},
        "mm-fm": {"objective": "mm-fm", "condition": "none"},
        "classes": {"objective": "mm-fm", "condition": "class"},
        "apart": {"objective": "fm", "source": "gmm", "coupling": "independent", "condition": "mode"},
        "union": {"objective": "gm-kl", "source": "gmm"},
    }
    for name, given in settings.items():
        train(small.latents("classes"), root / name, make(TrainConfig, TRAINING | given), Progress())
    return {name: root / name for name in settings}


def likelihood_of(data: Path, run: Path, config: LikelihoodConfig = FEW) -> LikelihoodReport:
    return likelihood(data, run, config, Progress())


def normalised(small: Small, run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Every third latent, normalised, and the logarithms of the deviations."""
    statistics = open_run(run).statistics()
    with open_latents(small.latents("classes")) as latents:
        x = statistics.normalise(torch.from_numpy(latents.patches(slice(None, None, 3))))
    return x.double().numpy(), statistics.std.double().log().numpy()


def gaussian(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    terms = -0.5 * ((x - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    return terms.reshape(*terms.shape[:-3], -1).sum(-1)


def every_third(small: Small, path: Path, classes: bool = True, copies: int = 1) -> Path:
    """A file of every third latent, ``copies`` of it, of which the second counts as mirrored."""
    with open_latents(small.latents("classes")) as latents:
        part = np.arange(0, len(latents), 3).repeat(copies)
        write_latents(
            path,
            patches=latents.patches(part),
            descriptors=latents.descriptors(part),
            labels=np.where(classes, latents.labels[part], -1),
            names=[latents.names()[row] for row in part],
            classes=latents.classes if classes else [],
            tokenizer=latents.tokenizer,
            provenance=Provenance("encode", {}),
            flipped=np.arange(len(part)) % copies == 1,
        )
    return path


def modes(small: Small, run: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, and means and deviations in normalised latents."""
    statistics = open_run(run).statistics()
    with open_gmm(small.gmm("classes")) as gmm:
        every = np.arange(len(gmm))
        mean = statistics.normalise(torch.from_numpy(gmm.patch_mean(every))).numpy()
        return gmm.weights, mean, gmm.patch_std(every) / statistics.std.numpy()


def probable_modes(small: Small, weights: np.ndarray) -> list[int]:
    """The most probable mode that has a weight, of every third image; where none is probable, that of most weight."""
    with open_gmm(small.gmm("classes")) as gmm, open_latents(small.latents("classes")) as latents:
        assignments = fresh_assignments(gmm, torch.device("cpu"))
        kept = assignments.posterior(torch.from_numpy(latents.descriptors(slice(None, None, 3))) - assignments.centre)
    chosen = []
    for row, probabilities in zip(kept.modes.tolist(), kept.probabilities.tolist(), strict=True):
        possible = [mode for mode, p in zip(row, probabilities, strict=True) if p > 0 and weights[mode] > 0]
        chosen.append(possible[0] if possible else int(weights.argmax()))
    return chosen


def weighted(run: Path, path: Path, weights: np.ndarray) -> Path:
    """A copy of a run, whose p(mode | class) are ``weights`` (classes or 1, K)."""
    shutil.copytree(run, path)
    tensors = read_tensors(path / STATISTICS)
    write_tensors(path / STATISTICS, tensors | {"mode_weights": torch.from_numpy(weights).float()})
    return path


@pytest.fixture
def labels(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The class labels that the network is given."""
    given = []

    conditions_of = TrainedModel.conditions

    def conditions(model, classes, modes, mean) -> Conditions:
        given.extend(classes.tolist())
        return conditions_of(model, classes, modes, mean)

    monkeypatch.setattr(TrainedModel, "conditions", conditions)
    return given


def test_a_flow_that_stands_still_has_its_sources_density(small: Small, runs: dict[str, Path]) -> None:
    x, stretch = normalised(small, runs["fm"])
    report = likelihood_of(small.latents("classes"), runs["fm"])
    expected = -gaussian(x, np.zeros(1), np.ones(1)) / x[0].size
    assert (report.count, report.dimensions, report.bound, report.velocity) == (20, x[0].size, False, None)
    assert report.normalised[0] == pytest.approx(expected.mean(), abs=1e-3)
    assert report.normalised[1] == pytest.approx(expected.std(ddof=1) / 20**0.5, rel=1e-2)
    assert report.latents[0] - report.normalised[0] == pytest.approx(stretch.mean())


def test_a_mixture_source_is_summed_over_its_modes(small: Small, runs: dict[str, Path]) -> None:
    x, _ = normalised(small, runs["mm-fm"])
    weights, mean, std = modes(small, runs["mm-fm"])
    joint = np.log(weights) + gaussian(x[:, None], mean, std)
    expected = -np.logaddexp.reduce(joint, axis=1) / x[0].size
    report = likelihood_of(small.latents("classes"), runs["mm-fm"])
    assert report.normalised[0] == pytest.approx(expected.mean(), abs=2e-3) and not report.bound


@pytest.mark.slow
def test_a_union_is_bounded_by_its_most_probable_mode(small: Small, runs: dict[str, Path]) -> None:
    x, _ = normalised(small, runs["union"])
    weights, mean, std = modes(small, runs["union"])
    joint = np.log(weights) + gaussian(x[:, None], mean, np.maximum(std, 0.05))
    best, every = -joint.max(1) / x[0].size, -np.logaddexp.reduce(joint, axis=1) / x[0].size
    report = likelihood_of(small.latents("classes"), runs["union"])
    # the mode is that of the descriptor, which is seldom another one than the patches'
    assert report.bound and every.mean() - 0.02 < report.normalised[0]
    assert report.normalised[0] == pytest.approx(best.mean(), abs=0.2)
    assert report.velocity is not None and np.isfinite(report.velocity).all()


@pytest.mark.slow
@pytest.mark.parametrize("missing", [[], [0], [1, 2, 3]])
def test_the_bound_is_by_a_mode_that_occurs_and_the_source_apart_from_it_is_the_mixture(
    missing: list[int], small: Small, runs: dict[str, Path], tmp_path: Path
) -> None:
    """-log p(x) <= -log w_k - log p(x | k) for any w_k > 0; missing: modes of weight 0."""
    x, _ = normalised(small, runs["apart"])
    weights, mean, std = modes(small, runs["apart"])
    weights[missing] = 0
    weights /= weights.sum()
    run = weighted(runs["apart"], tmp_path / "run", weights[None])
    chosen = probable_modes(small, weights)
    assert missing or len(set(chosen)) == 4
    with np.errstate(divide="ignore"):
        density = np.logaddexp.reduce(np.log(weights) + gaussian(x[:, None], mean, std), axis=1)
    expected = -(np.log(weights[chosen]) + density) / x[0].size
    report = likelihood_of(small.latents("classes"), run)
    assert report.bound and report.normalised[0] == pytest.approx(expected.mean(), abs=2e-3)


@pytest.mark.slow
def test_an_image_without_a_class_comes_from_the_modes_of_all_classes(
    small: Small, runs: dict[str, Path], tmp_path: Path, labels: list[int]
) -> None:
    x, _ = normalised(small, runs["classes"])
    weights, mean, std = modes(small, runs["classes"])
    expected = -np.logaddexp.reduce(np.log(weights) + gaussian(x[:, None], mean, std), axis=1) / x[0].size
    report = likelihood_of(every_third(small, tmp_path / "latents.h5", classes=False), runs["classes"])
    assert report.normalised[0] == pytest.approx(expected.mean(), abs=2e-3) and not report.bound
    assert set(labels) == {3}  # the null label


@pytest.mark.slow
def test_the_mode_of_an_image_without_a_class_weighs_as_in_all_classes(
    small: Small, runs: dict[str, Path], tmp_path: Path, labels: list[int]
) -> None:
    """The bound is lower by log p(mode | class) - log p(mode) with the class than without, as the flow is the same."""
    weights = np.full((3, 4), 0.1) + 0.6 * np.eye(3, 4)
    together = np.array([30, 20, 10]) / 60 @ weights
    run = weighted(runs["union"], tmp_path / "run", weights)
    known, unknown = (every_third(small, tmp_path / f"{classes}.h5", classes) for classes in (True, False))
    with_class = likelihood_of(known, run)
    assert set(labels) == {0, 1, 2}
    labels.clear()
    without = likelihood_of(unknown, run)
    assert set(labels) == {3} and without.bound  # the null label
    chosen = probable_modes(small, together)
    with open_latents(known) as latents:
        gain = (np.log(weights[latents.labels, chosen]) - np.log(together[chosen])) / with_class.dimensions
    assert without.normalised[0] - with_class.normalised[0] == pytest.approx(gain.mean(), abs=1e-4)


@pytest.mark.slow
def test_an_image_and_its_mirrored_copy_are_one_image(small: Small, runs: dict[str, Path], tmp_path: Path) -> None:
    """Two rows per image, equal here: the standard error is that of the images."""
    x, _ = normalised(small, runs["fm"])
    report = likelihood_of(
        every_third(small, tmp_path / "latents.h5", copies=2),
        runs["fm"],
        make(LikelihoodConfig, {"batch_size": 7, "device": "cpu"}),
    )
    expected = -gaussian(x, np.zeros(1), np.ones(1)) / x[0].size
    assert report.count == 20 and report.normalised[0] == pytest.approx(expected.mean(), abs=1e-3)
    assert report.normalised[1] == pytest.approx(expected.std(ddof=1) / 20**0.5, rel=1e-2)


@pytest.mark.slow
def test_images_are_encoded_as_the_runs_were(small: Small, runs: dict[str, Path]) -> None:
    latents, images = (
        likelihood_of(path, runs["mm-fm"]) for path in (small.latents("classes"), small.classes / "images")
    )
    assert images.count == latents.count and images.normalised[0] == pytest.approx(latents.normalised[0], abs=1e-3)


@pytest.mark.slow
def test_what_a_user_sees(small: Small, runs: dict[str, Path], tmp_path: Path, capsys) -> None:
    arguments = ["likelihood", str(small.latents("classes")), str(runs["union"]), "--num", "8", "--device", "cpu"]
    assert main([*arguments, "--dry-run"]) == 0
    assert "an upper bound" in " ".join(capsys.readouterr().out.split())
    assert main([*arguments, "--output", str(tmp_path / "result.json")]) == 0
    captured = capsys.readouterr()
    assert "velocity, averaged over time" in captured.out and "is what" in captured.err
    assert main([*arguments, "--json"]) == 0  # and likelihood.json
    printed = json.loads(capsys.readouterr().out)
    for path in (tmp_path / "result.json", tmp_path / "likelihood.json"):
        assert json.loads(path.read_text())["details"] == printed


@pytest.mark.slow
def test_a_run_that_names_no_mixture_takes_one_of_its_modes(
    small: Small, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In `sample` as in `likelihood`: it is to be given, and its number of modes is checked."""
    run = tmp_path / "run"
    shutil.copytree(runs["mm-fm"], run)
    record = open_run(run).manifest
    rewrite(run / CONFIG, replace(record, inputs=tuple(used for used in record.inputs if used.role != "gmm")))
    fit_gmm(small.latents("classes"), tmp_path / "other.h5", replace(MIXTURE, modes=3), Progress())
    settings = ["--num", "2", "--device", "cpu", "--gmm"]
    for command in (["likelihood", str(small.latents("classes")), str(run)], ["sample", str(run), "samples"]):
        for flags, message in (
            (settings[:-1], f"{run} does not say which mixture it was trained with: give it by --gmm"),
            ([*settings, "other.h5"], f"{run} was trained with another mixture than other.h5: give its own by --gmm"),
        ):
            assert main([*command, *flags]) == 2
            assert message in capsys.readouterr().err
        assert main([*command, *settings, str(small.gmm("classes"))]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given, path: [str(path / "nowhere"), given[1]], "nowhere does not exist"),
        (lambda given, path: [given[0], str(path)], "holds no config.json"),
        (lambda given, path: [*given, "--output", str(path / "mine.json")], "no earlier result"),
        (lambda given, path: [*given, "--output", str(path / "found.txt")], "ends in .json"),
        (lambda given, path: [*given, "--json", "--dry-run"], "--json"),
        (lambda given, path: [str(path / "classes"), given[1]], "has the class z"),
        (lambda given, path: [*given, "--tolerance", "0"], "--tolerance"),
        (lambda given, path: [str(path / "large.npz"), given[1]], "holds images of 9 x 9 px, and those of"),
    ],
)
def test_what_is_wrong_is_one_line(
    change, message, small: Small, runs: dict[str, Path], tmp_path: Path, capsys
) -> None:
    (tmp_path / "mine.json").write_text("[]")
    np.savez(tmp_path / "large.npz", arr_0=np.zeros((4, 9, 9, 3), np.uint8))
    shutil.copytree(small.classes / "images" / "a", tmp_path / "classes" / "z")
    given = [str(small.latents("classes")), str(runs["fm"])]
    assert main(["likelihood", *change(given, tmp_path)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("gmtool: error: ") and message in line
