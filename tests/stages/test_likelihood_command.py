"""gmtool likelihood: runs whose velocity is nearly 0, whose density is their source's; and what cannot be computed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small import Small

from gmtool.artifacts.gmm import open_gmm
from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.run import open_run
from gmtool.cli.app import main
from gmtool.progress import Progress
from gmtool.settings import make
from gmtool.stages.likelihood.config import LikelihoodConfig
from gmtool.stages.likelihood.report import LikelihoodReport
from gmtool.stages.likelihood.run import likelihood
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.run import train

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


def modes(small: Small, run: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, and means and deviations in normalised latents."""
    statistics = open_run(run).statistics()
    with open_gmm(small.gmm("classes")) as gmm:
        every = np.arange(len(gmm))
        mean = statistics.normalise(torch.from_numpy(gmm.patch_mean(every))).numpy()
        return gmm.weights, mean, gmm.patch_std(every) / statistics.std.numpy()


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
