import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from gmtool.artifacts.gmm import (
    DescriptorMixture,
    GmmFile,
    KeptModes,
    expect_latents,
    gmm_bytes,
    open_gmm,
    write_gmm,
)
from gmtool.artifacts.latents import Provenance, open_latents, write_latents
from gmtool.artifacts.manifest import Input
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.errors import UserError
from gmtool.mixture.patch_moments import PatchMode

MODES, DATA, SIZE, SHAPE = 5, 9, 3, (2, 3, 4)


def latents_file(path: Path, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    write_latents(
        path,
        patches=rng.normal(size=(DATA, *SHAPE)),
        descriptors=rng.normal(size=(DATA, SIZE)).astype(np.float32),
        labels=np.zeros(DATA, np.int64),
        names=[f"{index}.png" for index in range(DATA)],
        classes=["a"],
        tokenizer=TokenizerSpec("pixels", {}),
        provenance=Provenance("encode", {}),
    )
    return path


def patch_modes(seed: int = 0) -> list[PatchMode]:
    rng = np.random.default_rng(seed)
    return [PatchMode(k, *rng.uniform(0.5, 2, (2, *SHAPE)).astype(np.float32)) for k in range(MODES)]


def kept() -> KeptModes:
    modes = np.array([[k % 4, (k + 1) % 4] for k in range(DATA)], np.int32)
    probabilities = np.tile(np.array([0.75, 0.25], np.float32), (DATA, 1))
    modes[0], probabilities[0] = [2, 0], [1, 0]
    return KeptModes(modes, probabilities)


def written(path: Path, patches: list[PatchMode] | None = None, fingerprint: str = "ab") -> Path:
    rng = np.random.default_rng(1)
    write_gmm(
        path,
        descriptors=DescriptorMixture(
            np.full(MODES, 0.2), rng.normal(size=(MODES, SIZE)), rng.uniform(1, 2, (MODES, SIZE))
        ),
        kept=kept(),
        patches=patch_modes() if patches is None else patches,
        shape=SHAPE,
        latents=Input("latents", "latents.h5", fingerprint),
        config={"modes": MODES},
        details={"populated": 4},
    )
    return path


@pytest.fixture
def gmm(tmp_path: Path) -> GmmFile:
    return open_gmm(written(tmp_path / "gmm.h5"))


def test_what_is_written_is_read(gmm: GmmFile) -> None:
    with gmm:
        assert (len(gmm), gmm.shape, gmm.top_k) == (MODES, SHAPE, 2)
        assert gmm.kept(slice(None)).modes.shape == (DATA, 2)
        modes = patch_modes()
        wanted = np.array([3, 0, 3, 4])
        np.testing.assert_array_equal(gmm.patch_mean(wanted), [modes[k].mean for k in wanted])
        np.testing.assert_array_equal(gmm.patch_std(wanted), [modes[k].std for k in wanted])
        assert gmm.patch_std(wanted).dtype == np.float32
        assert gmm.patch_mean(np.array([], int)).shape == (0, *SHAPE)
        rows = np.array([8, 1, 1, 0])
        np.testing.assert_array_equal(gmm.kept(rows).modes, kept().modes[rows])
        np.testing.assert_array_equal(gmm.kept(slice(2, 6)).probabilities, kept().probabilities[2:6])
        with pytest.raises(IndexError, match=r"gmm\.h5"):
            gmm.patch_mean(np.array([MODES]))


def test_weights_are_the_kept_probabilities(gmm: GmmFile) -> None:
    population = np.zeros(MODES)
    for modes, probabilities in zip(kept().modes, kept().probabilities, strict=True):
        for mode, probability in zip(modes, probabilities, strict=True):
            population[mode] += probability
    np.testing.assert_allclose(gmm.population, population)
    np.testing.assert_allclose(gmm.weights, population / DATA)
    assert gmm.weights[4] == 0


def test_the_manifest_describes_the_arrays(gmm: GmmFile) -> None:
    manifest = gmm.manifest
    assert (manifest.kind, manifest.stage, manifest.config["modes"]) == ("gmm", "fit-gmm", MODES)
    assert manifest.details["populated"] == 4
    assert manifest.arrays["patch_std"].shape == (MODES, *SHAPE)
    assert manifest.input("latents") == Input("latents", "latents.h5", "ab")
    with h5py.File(gmm.path) as file:
        assert set(manifest.arrays) | {"checksums"} == set(file)
        for name, array in manifest.arrays.items():
            assert (file[name].shape, str(file[name].dtype)) == (array.shape, array.dtype)


def test_the_fingerprint_is_the_content_s(tmp_path: Path) -> None:
    def fingerprint(name: str, patches: list[PatchMode]) -> str:
        return open_gmm(written(tmp_path / name, patches)).manifest.fingerprint

    first = fingerprint("a.h5", patch_modes())
    assert fingerprint("b.h5", patch_modes()) == first
    changed = patch_modes()
    changed[4].std[1, 2, 3] += 1e-3
    assert fingerprint("c.h5", changed) != first


def test_pickled_for_a_worker_it_reads_again(gmm: GmmFile) -> None:
    gmm.patch_mean(np.array([0]))
    copy = pickle.loads(pickle.dumps(gmm))
    np.testing.assert_array_equal(copy.patch_mean(np.array([2])), gmm.patch_mean(np.array([2])))


@pytest.mark.parametrize("count", [0, 3])
def test_a_failure_on_the_way_leaves_nothing(tmp_path: Path, count: int) -> None:
    def breaks():
        yield from patch_modes()[:count]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        written(tmp_path / "gmm.h5", breaks())
    with pytest.raises(ValueError, match="modes"):
        written(tmp_path / "gmm.h5", patch_modes()[:count])
    assert list(tmp_path.iterdir()) == []


def test_other_latents_are_refused(tmp_path: Path) -> None:
    mine, other = latents_file(tmp_path / "mine.h5"), latents_file(tmp_path / "other.h5", seed=1)
    with open_latents(mine) as latents, open_latents(other) as strange:
        gmm = open_gmm(written(tmp_path / "gmm.h5", fingerprint=latents.manifest.fingerprint))
        expect_latents(gmm, latents)
        with pytest.raises(UserError, match=r"gmm.h5 was fitted to other latents.*gmtool fit-gmm .*other.h5 OTHER.h5"):
            expect_latents(gmm, strange)


def test_files_that_are_no_mixture(tmp_path: Path) -> None:
    good = written(tmp_path / "good.h5").read_bytes()
    latents_file(tmp_path / "latents.h5")
    (tmp_path / "half.h5").write_bytes(good[: len(good) // 2])
    (tmp_path / "text.h5").write_text("no mixture")
    (tmp_path / "empty.h5").touch()
    with h5py.File(tmp_path / "strange.h5", "w") as file:
        file["x"] = 1
    for name in ("short.h5", "shape.h5"):
        (tmp_path / name).write_bytes(good)
    with h5py.File(tmp_path / "short.h5", "r+") as file:
        del file["cls_var"]
    with h5py.File(tmp_path / "shape.h5", "r+") as file:
        del file["probabilities"]
        file["probabilities"] = np.zeros((2, 2))
    for name, message in {
        "missing.h5": "does not exist",
        ".": "is a folder",
        "latents.h5": "is a latents file, not a fitted mixture: give what `gmtool fit-gmm` writes",
        "half.h5": "not a whole HDF5 file",
        "text.h5": "not a whole HDF5 file",
        "empty.h5": "not a whole HDF5 file",
        "strange.h5": "was not written by gmtool",
        "short.h5": "is damaged",
        "shape.h5": "probabilities is .2, 2., not",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            open_gmm(tmp_path / name)
        assert "gmtool fit-gmm" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_size_is_foretold(tmp_path: Path) -> None:
    foretold = gmm_bytes(MODES, SIZE, DATA, 2, SHAPE)
    size = written(tmp_path / "gmm.h5").stat().st_size
    assert size <= foretold < 110_000
    assert size < foretold - 20_000  # what was reserved and not used is given back
