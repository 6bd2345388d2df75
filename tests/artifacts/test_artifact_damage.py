"""Damage: whatever byte of an artifact flips and wherever it is cut, it is refused in one line or gives what it gave.

Each artifact is small, is damaged in many places, spread over the whole file, and is read whole, in another process
(so that a signal is a failure of a test and not of all).
"""

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from gmtool.artifacts.gmm import DescriptorMixture, KeptModes, open_gmm, write_gmm
from gmtool.artifacts.latents import Provenance, open_latents, write_latents
from gmtool.artifacts.manifest import Input, Manifest, parse_manifest
from gmtool.artifacts.resume import ResumeFile, ResumeState
from gmtool.artifacts.safetensors_io import read_tensors, write_tensors
from gmtool.artifacts.samples import open_samples
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.errors import UserError
from gmtool.mixture.patch_moments import PatchMode
from gmtool.progress import Progress

PLACES = 200
CUTS = 40
SHAPE = (2, 3, 4)


def latents(path: Path) -> Path:
    rng = np.random.default_rng(0)
    write_latents(
        path,
        patches=rng.normal(size=(9, *SHAPE)),
        descriptors=rng.normal(size=(9, 5)).astype(np.float32),
        labels=np.arange(9) % 2,
        names=[f"a/{index}.png" for index in range(9)],
        classes=("a", "b"),
        tokenizer=TokenizerSpec("pixels", {"patch_size": 2}, {"mean": np.arange(4, dtype=np.float32)}),
        provenance=Provenance("encode", {"seed": 0}, (Input("images", "here", "ff"),)),
    )
    return path


def gmm(path: Path) -> Path:
    rng = np.random.default_rng(0)
    write_gmm(
        path,
        descriptors=DescriptorMixture(np.full(3, 1 / 3), rng.normal(size=(3, 5)), np.ones((3, 5))),
        kept=KeptModes(np.arange(8, dtype=np.int32).reshape(4, 2) % 3, np.full((4, 2), 0.5, np.float32)),
        patches=[PatchMode(k, *rng.uniform(1, 2, (2, *SHAPE)).astype(np.float32)) for k in range(3)],
        shape=SHAPE,
        latents=Input("latents", "latents.h5", "ab"),
        config={"modes": 3},
        details={"modes": 3},
    )
    return path


def tensors(path: Path) -> Path:
    values = {"weight": torch.arange(60.0).reshape(5, 12), "half": torch.ones(7, dtype=torch.bfloat16)}
    write_tensors(path, {**values, "step": torch.tensor(3), "empty": torch.empty(0, 4)})
    return path


def samples(path: Path) -> Path:
    path.mkdir()
    np.savez(path / "samples.npz", arr_0=np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3), arr_1=[0, 1])
    (path / "sampling.json").write_text(Manifest("samples", "sample", "00", {"seed": 1, "num": 2}).to_json())
    return path


def state(path: Path) -> Path:
    file = ResumeFile(path, "key")
    file.save(ResumeState({"images": 3}, {"mean": np.arange(4.0)}))
    return file.path


def digest(*parts: object) -> str:
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(
            part.tobytes() + str(part.dtype).encode() if isinstance(part, np.ndarray) else repr(part).encode()
        )
    return hasher.hexdigest()


def read_latents(path: Path) -> str:
    with open_latents(path) as file:
        small = file.labels, file.flipped, file.mean, file.var, file.classes, file.names(), file.manifest
        spec = file.tokenizer.name, file.tokenizer.settings, file.tokenizer.arrays["mean"]
        return digest(*small, *spec, file.patches(slice(None)), file.descriptors(np.arange(9)))


def read_gmm(path: Path) -> str:
    with open_gmm(path) as file:
        small = file.weights, file.population, file.cls_weights, file.cls_mean, file.cls_var, file.manifest
        kept = file.kept(slice(None))
        rows = file.patch_mean(np.arange(3)), file.patch_std(np.arange(3))
        return digest(*small, kept.modes, kept.probabilities, *rows)


def read_all_tensors(path: Path) -> str:
    tensors_read = read_tensors(path)
    return digest(
        *(
            part
            for name in sorted(tensors_read)
            for part in (name, tensors_read[name].dtype, tensors_read[name].float().numpy())
        )
    )


def read_images(path: Path) -> str:
    folder = open_samples(path.parent)
    return digest(folder.images(), folder.manifest)


def read_state(path: Path) -> str:
    loaded = ResumeFile(path.parent.with_name(path.parent.name[1:].removesuffix(".gmtool")), "key").load(Progress())
    if loaded is None:
        raise UserError("one that cannot be read is as good as none")
    return digest(loaded.record, *loaded.arrays.values())


ARTIFACTS: dict[str, tuple[Callable[[Path], Path], str, Callable[[Path], str]]] = {
    "latents": (latents, "", read_latents),
    "gmm": (gmm, "", read_gmm),
    "tensors": (tensors, "", read_all_tensors),
    "images": (samples, "samples.npz", read_images),
    "record": (samples, "sampling.json", read_images),
    "state": (state, "", read_state),
}


def damages(content: bytes) -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(len(content))
    used = np.flatnonzero(np.frombuffer(content, np.uint8))  # most of the rest is reserved for a longer manifest
    anywhere, meaningful = rng.choice(len(content), PLACES // 4), rng.choice(used, PLACES - PLACES // 4)
    for place in (*anywhere, *meaningful):
        changed = bytearray(content)
        changed[place] ^= int(rng.integers(1, 256))
        yield f"byte {place}", bytes(changed)
    for length in (0, 1, len(content) - 1, *rng.choice(len(content), CUTS)):
        yield f"cut to {length}", content[:length]


def _outcomes(path: Path, read: Callable[[Path], str], content: bytes, queue: "multiprocessing.Queue[object]") -> None:
    for what, changed in damages(content):
        queue.put(what)
        path.write_bytes(changed)
        try:
            queue.put(("read", read(path)))
        except UserError as error:
            queue.put(("refused", str(error)))
        except BaseException as error:
            queue.put(("failed", repr(error)))
    queue.put(None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARTIFACTS)
def test_damage_is_refused_or_changes_nothing(tmp_path: Path, name: str) -> None:
    write, member, read = ARTIFACTS[name]
    path = write(tmp_path / "artifact")
    path = path / member if member else path
    right, content = read(path), path.read_bytes()
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[object] = context.Queue()
    child = context.Process(target=_outcomes, args=(path, read, content, queue))
    child.start()
    refused = 0
    while (what := queue.get(timeout=60)) is not None:
        outcome, text = queue.get(timeout=60)
        assert outcome in ("read", "refused"), f"{what}: {text}"
        if outcome == "read":
            assert text == right, f"{what}: other numbers"
        else:
            assert "\n" not in text
            refused += 1
    child.join()
    assert child.exitcode == 0
    assert refused > PLACES / 2  # the harness reaches what matters


@pytest.mark.parametrize(
    ("dataset", "value"),
    [("weights", np.nan), ("weights", 0.0), ("cls_var", -1.0), ("cls_mean", np.inf), ("modes", 3), ("patch_std", -1.0)],
)
def test_numbers_that_no_mixture_has_are_refused_without_checksums_too(
    tmp_path: Path, dataset: str, value: float
) -> None:
    path = gmm(tmp_path / "gmm.h5")
    with h5py.File(path, "r+") as file:
        file[dataset][...] = value
    without_checksums(path)
    with pytest.raises(UserError, match=rf"gmm.h5 is damaged \({dataset}"):
        read_gmm(path)


@pytest.mark.parametrize(
    ("dataset", "value", "words"),
    [("var", -1.0, "negative"), ("mean", np.nan, "NaN"), ("labels", 2, "none of its 2 classes")],
)
def test_numbers_that_no_latents_have_are_refused_without_checksums_too(
    tmp_path: Path, dataset: str, value: float, words: str
) -> None:
    path = latents(tmp_path / "latents.h5")
    with h5py.File(path, "r+") as file:
        file[dataset][...] = value
    without_checksums(path)
    with pytest.raises(UserError, match=rf"latents.h5 is damaged .*{words}"):
        open_latents(path)


def without_checksums(path: Path) -> None:
    """Make a file as older versions wrote it: rows in chunks, and no checksum anywhere."""
    with h5py.File(path, "r+") as file:
        record = json.loads(file.attrs["manifest"])
        del record["checksum"]
        for array in record["arrays"].values():
            del array["checksum"]
        record["arrays"] = {name: array for name, array in record["arrays"].items() if "/" not in name}
        file.attrs["manifest"] = json.dumps(record)
        del file["checksums"]
        for name in ("patches", "patch_mean", "patch_std"):
            if name in file:
                values = file[name][...]
                del file[name]
                file.create_dataset(name, data=values, chunks=(1, *values.shape[1:]))


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    for write, read in ((latents, open_latents), (gmm, open_gmm)):
        path = write(tmp_path / write.__name__)
        with read(path) as file:
            file.verify()
            name = "patches" if write is latents else "patch_mean"
            before = file.read(name, [2, 0, 1])
        without_checksums(path)
        with read(path) as file:
            np.testing.assert_array_equal(file.read(name, [2, 0, 1]), before)
            file.verify()
        with h5py.File(path, "r+") as file:
            file[name][1] += 1
        with read(path) as file, pytest.raises(UserError, match=r"changed since (they|it) w"):
            file.verify()


def test_changed_content_is_found_without_checksums(tmp_path: Path) -> None:
    path = latents(tmp_path / "latents.h5")
    without_checksums(path)
    with h5py.File(path, "r+") as file:
        file["cls"][3, 2] += 1
    with open_latents(path) as file, pytest.raises(UserError, match="changed since it was written"):
        file.verify_content()


def test_the_bytes_of_a_file_do_not_depend_on_the_order_of_its_tensors(tmp_path: Path) -> None:
    """That of an optimizer's state is another one in a run that was resumed."""
    values = {"b": torch.ones(3), "a": torch.zeros(2, 2), "c": torch.tensor(1, dtype=torch.uint8)}
    write_tensors(tmp_path / "one", values)
    write_tensors(tmp_path / "two", {name: values[name] for name in "cab"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_tensors_without_checksums_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.ones(3)}, tmp_path / "a.safetensors")
    torch.testing.assert_close(read_tensors(tmp_path / "a.safetensors")["x"], torch.ones(3))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", '"x"', "[" * 100_000, '{"format": 1}', '{"format": "1"}', "\ud800", "nul", '{"format": 1e999}'],
)
def test_texts_that_are_no_manifest_are_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"config\.json") as caught:
        parse_manifest(text.encode(errors="surrogatepass"), Path("config.json"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"config": []},
        {"details": None},
        {"inputs": [{"role": 3}]},
        {"arrays": {"x": {"shape": ["3"], "dtype": "f", "unit": ""}}},
        {"kind": 1},
    ],
)
def test_manifests_of_other_types_are_one_line(change: dict[str, object]) -> None:
    record = json.loads(Manifest("latents", "encode", "00", {}).to_json()) | change
    del record["checksum"]
    with pytest.raises(UserError, match="no readable gmtool manifest"):
        parse_manifest(json.dumps(record), Path("x"))


def test_a_manifest_that_was_edited_says_how_to_go_on(tmp_path: Path) -> None:
    text = Manifest("run", "train", "00", {"seed": 0}).to_json()
    assert parse_manifest(text, tmp_path).config == {"seed": 0}
    changed = text.replace('"seed": 0', '"seed": 1')
    with pytest.raises(UserError, match='remove its entry "checksum"'):
        parse_manifest(changed, tmp_path)
    record = json.loads(changed)
    del record["checksum"]
    assert parse_manifest(json.dumps(record), tmp_path).config == {"seed": 1}
