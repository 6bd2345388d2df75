import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from small import Small
from user import torchrun

import gmtool
from gmtool.artifacts.gmm import expect_latents, open_gmm
from gmtool.artifacts.latents import Provenance, open_latents, write_latents
from gmtool.artifacts.run import VARIANCE_EPS
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.errors import MachineError, UserError
from gmtool.mixture.patch_moments import WORK_BYTES
from gmtool.mixture.settings import EmSettings, KMeansSettings
from gmtool.progress import Progress
from gmtool.settings import as_arguments, as_flat, changed
from gmtool.stages.fit_gmm.config import FitGmmConfig
from gmtool.stages.fit_gmm.plan import FitPlan, plan_fit
from gmtool.stages.fit_gmm.report import metrics_from_json
from gmtool.stages.fit_gmm.run import fit_gmm


class Heard(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self._task = ""
        self.tasks: dict[str, tuple[int, int]] = {}
        self.notes: list[str] = []

    def begin(self, task: str, total: int, unit: str, done: int = 0) -> None:
        self._task = task
        self.tasks[task] = (total, done)

    def advance(self, count: int = 1, figures: object = None) -> None:
        total, done = self.tasks[self._task]
        self.tasks[self._task] = (total, done + count)

    def note(self, message: str) -> None:
        self.notes.append(message)


def write(path: Path, patches: np.ndarray, descriptors: np.ndarray, names: list[str] | None = None, **more: object):
    n = len(patches)
    write_latents(
        path,
        patches=patches,
        descriptors=descriptors.astype(np.float32),
        labels=np.zeros(n, np.int64),
        names=names or [f"{index:05d}.png" for index in range(n)],
        classes=["all"],
        tokenizer=TokenizerSpec("pixels", {}),
        provenance=Provenance("encode", {}),
        **more,
    )
    return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x = load_digits().data / 8 - 1
    descriptors = PCA(16, random_state=0).fit_transform(x) + 3.0  # away from the origin, as real descriptors are
    return write(tmp_path_factory.mktemp("digits") / "latents.h5", x.reshape(-1, 1, 8, 8), descriptors)


CONFIG = FitGmmConfig(modes=20, kmeans=KMeansSettings(10), em=EmSettings(30), device="cpu")


def fit_config(**settings: object) -> FitGmmConfig:
    """CONFIG with other settings, by their flags' names."""
    return changed(CONFIG, settings)


def plan_of(latents: Path, output: Path, config: FitGmmConfig) -> FitPlan:
    with open_latents(latents) as source:
        return plan_fit(source, output, config, 1)


@pytest.mark.slow
def test_digits_end_to_end(digits: Path, tmp_path: Path) -> None:
    heard = Heard()
    report = fit_gmm(digits, tmp_path / "gmm.h5", CONFIG, heard)
    metrics = report.metrics
    assert (report.reused, metrics.populated, metrics.data, metrics.held_out) == (False, 20, 1797, 90)
    assert metrics.population[0] > 0
    assert list(metrics.population) == sorted(metrics.population)
    assert metrics.held_out_log_likelihood is not None
    # digits are clustered: one Gaussian explains held-out ones much worse
    one = fit_gmm(digits, tmp_path / "one.h5", fit_config(modes=1), Progress()).metrics
    assert metrics.held_out_log_likelihood > one.held_out_log_likelihood + 1
    assert heard.tasks["patch moments"] == (1797, 1797)
    assert heard.tasks["k-means++ seeds"] == (20, 20)
    with open_gmm(report.path) as gmm, open_latents(digits) as latents:
        expect_latents(gmm, latents)
        assert gmm.population.sum() == pytest.approx(1797)
        labels = gmm.kept(slice(None)).modes[:, 0]
        assert adjusted_rand_score(load_digits().target, labels) > 0.5
        # the patch means, weighted, are the mean of the data
        means = gmm.patch_mean(np.arange(20))
        np.testing.assert_allclose(np.tensordot(gmm.weights, means, 1), latents.mean, atol=1e-5)
        assert gmm.patch_std(np.arange(20)).min() >= np.sqrt(VARIANCE_EPS) * 0.999


@pytest.mark.slow
def test_likelihoods_are_those_of_the_stored_mixture(digits: Path, tmp_path: Path) -> None:
    from scipy.special import logsumexp
    from scipy.stats import norm

    metrics = fit_gmm(digits, tmp_path / "gmm.h5", CONFIG, Progress()).metrics
    with open_gmm(tmp_path / "gmm.h5") as gmm, open_latents(digits) as latents:
        x = latents.descriptors(slice(None)).astype(np.float64)
        parts = norm.logpdf(x[:, None], gmm.cls_mean, np.sqrt(gmm.cls_var)).sum(-1)
        densities = logsumexp(parts + np.log(gmm.cls_weights), axis=1)
        assert metrics.held_out_log_likelihood is not None
        total = metrics.log_likelihood * (1797 - 90) + metrics.held_out_log_likelihood * 90
        assert total / 1797 == pytest.approx(densities.mean(), abs=1e-3)
        np.testing.assert_array_equal(gmm.kept(slice(None)).modes[:, 0], (parts + np.log(gmm.cls_weights)).argmax(1))


@pytest.mark.slow
def test_seed_decides_and_machine_settings_do_not(digits: Path, tmp_path: Path) -> None:
    def fingerprint(name: str, **settings: object) -> str:
        fit_gmm(digits, tmp_path / name, fit_config(**settings), Progress())
        with open_gmm(tmp_path / name) as gmm:
            return gmm.manifest.fingerprint

    first = fingerprint("a.h5")
    assert fingerprint("b.h5") == first
    assert fingerprint("d.h5", seed=1) != first
    fingerprint("c.h5", memory=64 * (WORK_BYTES + 5.5 * 16 * 3) / 2**30)
    with open_gmm(tmp_path / "a.h5") as whole, open_gmm(tmp_path / "c.h5") as blocked:
        np.testing.assert_allclose(blocked.patch_std(np.arange(20)), whole.patch_std(np.arange(20)), rtol=1e-6)


@pytest.mark.slow
def test_the_same_again_is_not_done_again(digits: Path, tmp_path: Path) -> None:
    output = tmp_path / "gmm.h5"
    first = fit_gmm(digits, output, CONFIG, Progress())
    written = output.stat().st_mtime_ns
    again = fit_gmm(digits, output, fit_config(memory=1.0), Progress())
    assert again.reused
    assert again.metrics == first.metrics
    assert output.stat().st_mtime_ns == written
    assert not fit_gmm(digits, output, fit_config(shrinkage=1.0), Progress()).reused
    output.write_bytes(output.read_bytes()[:5000])  # it may be anything
    with pytest.raises(UserError, match=r"gmm.h5 exists and is no fitted mixture that can be read"):
        fit_gmm(digits, output, CONFIG, Progress())
    output.unlink()
    assert not fit_gmm(digits, output, CONFIG, Progress()).reused
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gmm.h5", "gmm.png"]


@pytest.mark.parametrize("covariance", ["diagonal", "spherical"])
@pytest.mark.slow
def test_hard_assignment(digits: Path, tmp_path: Path, covariance: str) -> None:
    config = fit_config(assignment="hard", covariance=covariance, shrinkage=0.0)
    fit_gmm(digits, tmp_path / "gmm.h5", config, Progress())
    with open_gmm(tmp_path / "gmm.h5") as gmm, open_latents(digits) as latents:
        kept = gmm.kept(slice(None))
        assert kept.modes.shape == (1797, 1)
        mode = int(gmm.population.argmax())
        own = latents.patches(np.flatnonzero(kept.modes[:, 0] == mode)).astype(np.float64)
        assert gmm.population[mode] == len(own)
        np.testing.assert_allclose(gmm.patch_mean(np.array([mode]))[0], own.mean(0), atol=1e-5)
        variance = own.var(0) + VARIANCE_EPS
        if covariance == "spherical":
            scale = latents.var + VARIANCE_EPS
            variance = (variance / scale).mean() * scale
        np.testing.assert_allclose(gmm.patch_std(np.array([mode]))[0], np.sqrt(variance), rtol=1e-4)


def test_each_half_of_a_fit_to_a_part_is_followed_to_its_end(digits: Path, tmp_path: Path) -> None:
    heard = Heard()
    fit_gmm(digits, tmp_path / "gmm.h5", fit_config(fraction=0.25, modes=4, assignment="hard", em_iterations=0), heard)
    count = heard.tasks["mean and variance of the part"][0]
    assert 440 < count < 460
    for task in ("mean and variance of the part", "patch moments"):
        assert heard.tasks[task] == (count, count)


@pytest.mark.slow
def test_patches_can_be_assigned_harder_than_images(digits: Path, tmp_path: Path) -> None:
    """Moments of the images whose most probable mode it is, while images keep several: MM-FM's released mixtures."""
    config = fit_config(assignment="soft", patch_assignment="hard", shrinkage=0.0)
    heard = Heard()
    fit_gmm(digits, tmp_path / "mixed.h5", config, heard)
    fit_gmm(digits, tmp_path / "soft.h5", changed(config, {"patch_assignment": None}), Progress())
    with (
        open_latents(digits) as latents,
        open_gmm(tmp_path / "mixed.h5") as mixed,
        open_gmm(tmp_path / "soft.h5") as soft,
    ):
        kept, same = mixed.kept(slice(None)), soft.kept(slice(None))
        np.testing.assert_array_equal(kept.probabilities, same.probabilities)
        np.testing.assert_array_equal(mixed.weights, soft.weights)
        assert (kept.probabilities[:, 0] < 1).mean() > 0.2
        patches, best = latents.patches(slice(None)).astype(np.float64), kept.modes[:, 0]
        differ = 0.0
        for mode in range(20):
            own = patches[best == mode]
            mean, std = mixed.patch_mean(np.array([mode]))[0], mixed.patch_std(np.array([mode]))[0]
            np.testing.assert_allclose(mean, own.mean(0), atol=1e-6)
            np.testing.assert_allclose(std, np.sqrt(own.var(0) + VARIANCE_EPS), atol=1e-6)
            differ = max(differ, float(np.abs(mean - soft.patch_mean(np.array([mode]))[0]).max()))
        assert differ > 0.01
    with pytest.raises(UserError, match="--assignment hard keeps one mode per image: remove --patch-assignment soft"):
        fit_config(assignment="hard", patch_assignment="soft")


@pytest.mark.slow
def test_modes_that_are_nobody_s_first_choice_are_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = write(tmp_path / "latents.h5", rng.normal(size=(60, 1, 2, 2)), rng.normal(size=(60, 1)))
    heard = Heard()
    config = fit_config(modes=4, patch_assignment="hard", em_iterations=20, held_out=0.0, variance_floor=0.5)
    fit_gmm(path, tmp_path / "gmm.h5", config, heard)
    with open_latents(path) as latents, open_gmm(tmp_path / "gmm.h5") as gmm:
        first = np.bincount(gmm.kept(slice(None)).modes[:, 0], minlength=4)
        empty = np.flatnonzero((first == 0) & (gmm.population > 0))
        assert len(empty)  # else the data say nothing
        expected = np.broadcast_to(latents.mean, (len(empty), 1, 2, 2))
        np.testing.assert_allclose(gmm.patch_mean(empty), expected, atol=1e-6)
    assert f"{len(empty)} of 4 modes are no image's most probable one" in " ".join(heard.notes)


@pytest.mark.slow
def test_without_em_the_clusters_are_k_means(digits: Path, tmp_path: Path) -> None:
    metrics = fit_gmm(digits, tmp_path / "gmm.h5", fit_config(em_iterations=0, held_out=0.0), Progress()).metrics
    assert (metrics.em_iterations, metrics.held_out, metrics.held_out_log_likelihood) == (0, 0, None)
    better = fit_gmm(digits, tmp_path / "em.h5", fit_config(held_out=0.0), Progress()).metrics
    assert better.log_likelihood > metrics.log_likelihood


@pytest.mark.slow
def test_held_out_data_do_not_touch_the_descriptor_mixture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    patches, descriptors = rng.normal(size=(200, 1, 2, 2)), rng.normal(size=(200, 3))
    config = fit_config(modes=3, held_out=0.25)
    first = fit_gmm(write(tmp_path / "a.h5", patches, descriptors), tmp_path / "a_gmm.h5", config, Progress())
    assert first.metrics.held_out == 50
    held = np.random.default_rng(config.seed).permutation(200)[:50]
    changed = descriptors.copy()
    changed[held] += 5
    second = fit_gmm(write(tmp_path / "b.h5", patches, changed), tmp_path / "b_gmm.h5", config, Progress())
    with open_gmm(first.path) as a, open_gmm(second.path) as b:
        np.testing.assert_array_equal(a.cls_mean, b.cls_mean)
    assert first.metrics.log_likelihood == second.metrics.log_likelihood
    assert second.metrics.held_out_log_likelihood < first.metrics.held_out_log_likelihood - 1


def test_an_image_and_its_mirror_are_held_out_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    descriptors = np.repeat(rng.normal(size=(60, 8)), 2, axis=0)
    names = [f"{index // 2:03d}.png" for index in range(120)]
    path = write(
        tmp_path / "latents.h5", rng.normal(size=(120, 1, 2, 2)), descriptors, names, flipped=np.arange(120) % 2 == 1
    )
    plan = plan_of(path, tmp_path / "gmm.h5", fit_config(modes=10, held_out=0.25))
    assert (plan.fitted, plan.held_out) == (90, 30)
    # 45 modes of no spread, one a fitted image, explain the fitted images beyond measure, and no held-out one
    metrics = fit_gmm(path, tmp_path / "gmm.h5", fit_config(modes=45, held_out=0.25), Progress()).metrics
    assert metrics.log_likelihood > 0 > metrics.held_out_log_likelihood


def test_modes_without_images_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "latents.h5", np.random.default_rng(0).normal(size=(40, 1, 2, 2)), np.ones((40, 3)))
    heard = Heard()
    metrics = fit_gmm(path, tmp_path / "gmm.h5", fit_config(modes=4, assignment="hard"), heard).metrics
    assert metrics.populated == 1
    assert "3 of 4 modes hold no image" in " ".join(heard.notes)
    with open_gmm(tmp_path / "gmm.h5") as gmm, open_latents(path) as latents:
        empty = np.flatnonzero(gmm.weights == 0)
        assert len(empty) == 3
        np.testing.assert_allclose(gmm.patch_mean(empty), np.tile(latents.mean, (3, 1, 1, 1)), rtol=1e-5)


@pytest.mark.slow
def test_plan(digits: Path, tmp_path: Path) -> None:
    plan = plan_of(digits, tmp_path / "gmm.h5", fit_config(top_k=50))
    assert (plan.samples, plan.fitted, plan.modes, plan.top_k, plan.shape) == (1797, 1707, 20, 20, (1, 8, 8))
    fit_gmm(digits, tmp_path / "gmm.h5", fit_config(top_k=50), Progress())
    size = (tmp_path / "gmm.h5").stat().st_size
    assert size <= plan.bytes < 1.5 * size


def test_too_little_disk_is_told_first(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmtool.artifacts.files.free_bytes", lambda path: 10_000)
    with pytest.raises(MachineError, match=r"the mixture .* needs .* but only"):
        fit_gmm(digits, tmp_path / "gmm.h5", CONFIG, Progress())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "units", "settings"),
    [
        ("k-means", 3, {}),
        ("EM", 1, {}),
        ("EM", 7, {}),
        ("patch moments", 900, {"memory": 7.5 * 64 * 16 / 0.75 / 2**30}),
    ],
)
def test_interrupted_it_resumes(
    digits: Path, tmp_path: Path, task: str, units: int, settings: dict[str, float]
) -> None:
    class Stops(Heard):
        def advance(self, count: int = 1, figures: object = None) -> None:
            super().advance(count, figures)
            if self._task == task and self.tasks[task][1] >= units:
                raise KeyboardInterrupt

    config = fit_config(**settings)
    whole = fit_gmm(digits, tmp_path / "whole.h5", config, Progress()).metrics
    output = tmp_path / "gmm.h5"
    with pytest.raises(KeyboardInterrupt):
        fit_gmm(digits, output, config, Stops())
    assert not output.exists()
    heard = Heard()
    assert fit_gmm(digits, output, config, heard).metrics == whole
    assert any("resuming after" in note for note in heard.notes)
    with open_gmm(output) as gmm, open_gmm(tmp_path / "whole.h5") as expected:
        assert gmm.manifest.fingerprint == expected.manifest.fingerprint
    if task == "patch moments":
        assert set(heard.tasks) == {"patch moments"}
    assert sorted(path.name for path in tmp_path.glob("gmm*")) == ["gmm.h5", "gmm.png"]
    # what was begun with other settings is not resumed
    with pytest.raises(KeyboardInterrupt):
        fit_gmm(digits, output, changed(config, {"seed": 1}), Stops())
    heard = Heard()
    fit_gmm(digits, output, changed(config, {"seed": 2}), heard)
    assert not any("resuming after" in note for note in heard.notes)
    assert f"{output} was begun with other inputs or settings: starting over" in heard.notes


@pytest.mark.slow
def test_what_was_done_and_is_damaged_is_told_and_done_again(digits: Path, tmp_path: Path) -> None:
    class Stops(Progress):
        def begin(self, task: str, total: int, unit: str, done: int = 0) -> None:
            if task == "patch moments":
                raise KeyboardInterrupt

    whole = fit_gmm(digits, tmp_path / "whole.h5", CONFIG, Progress()).metrics
    output = tmp_path / "gmm.h5"
    for name in ("state.npz", "part"):
        with pytest.raises(KeyboardInterrupt):
            fit_gmm(digits, output, CONFIG, Stops())
        (spoilt,) = [path for path in (tmp_path / ".gmm.h5.gmtool").iterdir() if name in path.name]
        spoilt.write_bytes(b"neither HDF5 nor a state")
        heard = Heard()
        assert fit_gmm(digits, output, CONFIG, heard).metrics == whole
        (line,) = [note for note in heard.notes if "starting over" in note]
        assert line.startswith(f"{spoilt} is damaged")
        output.unlink()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.nan, "is not finite"),
        (-np.inf, "is not finite"),
        (1e20, r"has an entry of 1e\+20, beyond the 1e\+12 that distances allow"),
        (-3e38, r"has an entry of 3e\+38, beyond"),
    ],
)
def test_descriptors_that_cannot_be_clustered_are_named(tmp_path: Path, value: float, words: str) -> None:
    descriptors = np.zeros((30, 3))
    descriptors[17, 1] = value
    path = write(tmp_path / "latents.h5", np.zeros((30, 1, 2, 2)), descriptors)
    with pytest.raises(UserError, match=rf"descriptor of 00017.png {words}"):
        fit_gmm(path, tmp_path / "gmm.h5", fit_config(modes=2), Progress())
    assert [entry.name for entry in tmp_path.iterdir()] == ["latents.h5"]


@pytest.mark.parametrize("value", [-1e11, 1e6])
def test_large_descriptors_are_fitted_or_refused_in_words(tmp_path: Path, value: float) -> None:
    descriptors = np.random.default_rng(0).normal(size=(200, 3))
    descriptors[17, 1] = value
    path = write(tmp_path / "latents.h5", np.zeros((200, 1, 2, 2)), descriptors)
    try:
        metrics = fit_gmm(path, tmp_path / "gmm.h5", fit_config(modes=3, held_out=0.0), Progress()).metrics
        assert np.isfinite(metrics.log_likelihood)
    except UserError as error:
        assert "use --variance-floor" in str(error)


def test_descriptors_without_entries(tmp_path: Path) -> None:
    path = write(tmp_path / "latents.h5", np.zeros((30, 1, 2, 2)), np.zeros((30, 1)))
    with open_latents(path) as source:
        source.descriptor_size = 0  # no file of ours has that
        with pytest.raises(UserError, match=r"latents.h5 holds descriptors without entries.*encode again"):
            plan_fit(source, tmp_path / "gmm.h5", fit_config(modes=2), 1)


@pytest.mark.parametrize("em_iterations", [0, 5])
def test_modes_of_one_image_without_a_variance_floor(tmp_path: Path, em_iterations: int) -> None:
    rng = np.random.default_rng(0)
    path = write(tmp_path / "latents.h5", rng.normal(size=(12, 1, 2, 2)), rng.normal(size=(12, 3)))
    config = fit_config(modes=12, held_out=0.0, variance_floor=0.0, em_iterations=em_iterations)
    with pytest.raises(UserError, match=r"modes have no spread .* use --variance-floor 1e-06"):
        fit_gmm(path, tmp_path / "gmm.h5", config, Progress())
    assert [file.name for file in tmp_path.iterdir()] == ["latents.h5"]
    fit_gmm(path, tmp_path / "gmm.h5", changed(config, {"variance_floor": 1e-6}), Progress())


@pytest.mark.slow
@pytest.mark.parametrize("memory", [4.0, 64 * (WORK_BYTES + 5.5 * 16 * 3) / 2**30])
def test_an_output_in_a_new_folder(digits: Path, tmp_path: Path, memory: float) -> None:
    config = fit_config(modes=6, em_iterations=2, memory=memory)
    report = fit_gmm(digits, tmp_path / "new" / "folder" / "gmm.h5", config, Progress(), save_seconds=0.0)
    assert sorted(path.name for path in report.path.parent.iterdir()) == ["gmm.h5", "gmm.png"]


@pytest.mark.parametrize("name", ["gmm.png", "mixture.h5"])
def test_a_picture_of_the_user_s_is_not_replaced(digits: Path, tmp_path: Path, name: str) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "mixture.png")
    with pytest.raises(UserError, match=r"(gmm|mixture).png .*(choose|name)"):
        fit_gmm(digits, tmp_path / name, CONFIG, Progress())
    assert [path.name for path in tmp_path.iterdir()] == ["mixture.png"]


@pytest.mark.slow
def test_without_faiss(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_faiss = fit_gmm(digits, tmp_path / "gmm.h5", CONFIG, Progress()).metrics
    monkeypatch.setitem(sys.modules, "faiss", None)  # as if it were not installed
    without = fit_gmm(digits, tmp_path / "other.h5", CONFIG, Progress()).metrics
    assert without.log_likelihood == pytest.approx(with_faiss.log_likelihood, abs=1e-3)


KILLED = """
import json, os, signal, sys
from pathlib import Path
from gmtool.progress import Progress
from gmtool.settings import make
from gmtool.stages.fit_gmm.run import FitGmmConfig, fit_gmm

class Dies(Progress):
    def begin(self, task, total, unit, done=0):
        self.task, self.done = task, done

    def advance(self, count=1, figures=None):
        self.done += count
        if self.task == sys.argv[3] and self.done >= int(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)

config = make(FitGmmConfig, json.loads(sys.argv[5]))
fit_gmm(Path(sys.argv[1]), Path(sys.argv[2]), config, Dies(), save_seconds=0.0)
"""


TOGETHER = """
import os, sys, time
from gmtool.artifacts.gmm import GmmWriter
from gmtool.cli.app import run

def slowly(path):
    try:
        writer = reopen(path)
    except OSError:
        os._exit(3)  # what this process would do next leaves the other one waiting
    time.sleep(1.0)
    return writer

reopen, GmmWriter.reopen = GmmWriter.reopen, slowly
run()
"""


@pytest.mark.slow
def test_two_processes_resume_what_one_began(digits: Path, tmp_path: Path) -> None:
    """The unfinished file is opened by one of them alone."""

    class Stops(Heard):
        def advance(self, count: int = 1, figures: object = None) -> None:
            super().advance(count, figures)
            if self._task == "patch moments" and self.tasks[self._task][1] >= 900:
                raise KeyboardInterrupt

    config = fit_config(memory=7.5 * 64 * 16 / 0.75 / 2**30)
    whole = fit_gmm(digits, tmp_path / "whole.h5", config, Progress()).metrics
    output = tmp_path / "gmm.h5"
    with pytest.raises(KeyboardInterrupt):
        fit_gmm(digits, output, config, Stops())
    (tmp_path / "script.py").write_text(TOGETHER)
    done = torchrun(
        ["script.py", "fit-gmm", str(digits), str(output), *as_arguments(CONFIG), "--memory", "0.009765625MiB"],
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert re.search("resuming after [0-9]+ modes. patch moments", done.stderr)
    assert "starting over" not in done.stderr
    with open_gmm(output) as gmm, open_gmm(tmp_path / "whole.h5") as expected:
        assert metrics_from_json(gmm.manifest.details) == whole
        assert gmm.manifest.fingerprint == expected.manifest.fingerprint


@pytest.mark.slow
def test_killed_it_resumes(digits: Path, tmp_path: Path) -> None:
    # killed three times on its way, each time by the next command: in k-means, in EM, and among blocks of modes
    config = fit_config(memory=7.5 * 64 * 16 / 0.75 / 2**30)
    whole = fit_gmm(digits, tmp_path / "whole.h5", config, Progress()).metrics
    output = tmp_path / "gmm.h5"
    for task, units in (("k-means", "4"), ("EM", "6"), ("patch moments", "1200")):
        arguments = [str(digits), str(output), task, units, json.dumps(as_flat(config))]
        environment = {**os.environ, "PYTHONPATH": str(Path(gmtool.__file__).parents[1])}
        died = subprocess.run([sys.executable, "-c", KILLED, *arguments], env=environment)
        assert died.returncode == -signal.SIGKILL
        assert not output.exists()
    heard = Heard()
    assert fit_gmm(digits, output, config, heard).metrics == whole
    assert any(re.search("resuming after [0-9]+ modes. patch moments", note) for note in heard.notes)
    with open_gmm(output) as gmm, open_gmm(tmp_path / "whole.h5") as expected:
        assert gmm.manifest.fingerprint == expected.manifest.fingerprint
    assert sorted(path.name for path in tmp_path.glob("gmm*")) == ["gmm.h5", "gmm.png"]


@pytest.mark.slow
def test_the_picture_comes_back(digits: Path, tmp_path: Path) -> None:
    fit_gmm(digits, tmp_path / "gmm.h5", CONFIG, Progress())
    picture = tmp_path / "gmm.png"
    size = Image.open(picture).size
    picture.unlink()
    assert fit_gmm(digits, tmp_path / "gmm.h5", CONFIG, Progress()).reused
    assert Image.open(picture).size == size


def test_the_modes_means_are_in_the_picture(small: Small) -> None:
    # they are plotted beside the populations and curves
    width, height = Image.open(small.flat / "gmm.png").size
    assert height >= width


def test_history_is_of_the_fitted_and_of_the_held_out(digits: Path, tmp_path: Path) -> None:
    metrics = fit_gmm(digits, tmp_path / "gmm.h5", fit_config(tolerance=0.0), Progress()).metrics
    assert len(metrics.history) == len(metrics.held_out_history) == metrics.em_iterations == 30
    assert min(np.diff([*metrics.history, metrics.log_likelihood])) > -1e-4
    assert metrics.held_out_history[-1] == pytest.approx(metrics.held_out_log_likelihood, abs=0.2)
    # each mode has less to explain than all data together, and the more freedom the less
    gaussian, spherical, diagonal = metrics.distances
    assert gaussian.nats == pytest.approx(0.5 * np.log(2 * np.pi) + 0.5, abs=0.05)
    assert gaussian.travel == pytest.approx(2, abs=0.1)
    assert diagonal.nats < spherical.nats < gaussian.nats
    assert diagonal.travel < gaussian.travel - 0.2


@pytest.mark.slow
def test_mirror_makes_modes_symmetric(digits: Path, tmp_path: Path) -> None:
    fit_gmm(digits, tmp_path / "gmm.h5", fit_config(mirror=True), Progress())
    with open_gmm(tmp_path / "gmm.h5") as gmm:
        means = gmm.patch_mean(np.arange(20))
        np.testing.assert_array_equal(means, means[..., ::-1])
        assert gmm.population.sum() == pytest.approx(1797)
    rng = np.random.default_rng(0)
    flipped = write(
        tmp_path / "flipped.h5", rng.normal(size=(8, 1, 2, 2)), rng.normal(size=(8, 3)), flipped=np.arange(8) % 2 == 1
    )
    with pytest.raises(UserError, match=r"--mirror: .*flipped.h5 holds mirrored copies already.*remove it"):
        plan_of(flipped, tmp_path / "other.h5", fit_config(modes=2, mirror=True))


def test_the_plan_tells_of_blocks_and_memory(digits: Path, tmp_path: Path) -> None:
    plan = plan_of(digits, tmp_path / "gmm.h5", fit_config(top_k=3))
    assert (plan.blocks, plan.passes, plan.latent_bytes) == (1, 1, 1797 * 128)
    memory = 64 * (WORK_BYTES + 7.5 * 16 / 0.3)
    tight = plan_of(digits, tmp_path / "gmm.h5", fit_config(top_k=3, memory=memory / 2**30))
    assert (tight.blocks, tight.passes) == (3, 3)
    assert tight.patch_bytes <= memory
    with pytest.raises(UserError, match=r"--memory 1e-07 is too small for one mode of 1 x 8 x 8.*give 0.001 or more"):
        plan_of(digits, tmp_path / "gmm.h5", fit_config(memory=1e-7))


def test_latents_that_are_not_finite(tmp_path: Path) -> None:
    path = write(tmp_path / "latents.h5", np.zeros((30, 1, 2, 2)), np.zeros((30, 3)))
    with h5py.File(path, "r+") as file:
        file["var"][0, 0, 0] = np.inf
    with pytest.raises(UserError, match=r"latents.h5 is damaged .the checksum of var does not match"):
        fit_gmm(path, tmp_path / "gmm.h5", fit_config(modes=2), Progress())
