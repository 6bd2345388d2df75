"""The encode stage: what it writes, and that an interruption at any moment changes nothing."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from multiprocessing.queues import SimpleQueue as Queue
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import gmtool
from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.outputs import Output
from gmtool.artifacts.resume import ResumeFile, ResumeState
from gmtool.errors import MachineError, UserError
from gmtool.progress import Progress
from gmtool.settings import make
from gmtool.stages.encode.config import EncodeConfig
from gmtool.stages.encode.plan import plan_encoding
from gmtool.stages.encode.run import encode_images
from gmtool.tokenizers.build import build_tokenizer
from gmtool.tokenizers.settings import TokenizerSettings

ENCODER = Path(__file__).parents[1] / "data/rae_encoder"
PIXELS = EncodeConfig(TokenizerSettings("pixels"), batch_size=7, workers=0)
CPU = torch.device("cpu")


class Notes(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


class Stop(Progress):
    """Interrupts after so many images."""

    def __init__(self, images: int) -> None:
        self._left = images

    def advance(self, count: int = 1, figures: object = None) -> None:
        self._left -= count
        if self._left <= 0:
            raise KeyboardInterrupt


def paint(root: Path, count: int, size: int = 16, colour: bool = True) -> Path:
    """Class folders of noise images, in three classes."""
    rng = np.random.default_rng(count)
    for index in range(count):
        pixels = rng.integers(0, 256, (size, size, 3) if colour else (size, size), dtype=np.uint8)
        folder = root / "abc"[index * 3 // count]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return root


def part(output: Path) -> Path:
    return Output(output, output, "latents").part


def resume_file(folder: Path, output: Path) -> ResumeFile:
    return plan_encoding(folder, output, PIXELS).resume_file


def assert_same_datasets(first: Path, second: Path) -> None:
    """All that the records list is the same; rows beyond them, of images that were skipped, mean nothing."""
    manifests = [open_latents(path).manifest for path in (first, second)]
    assert manifests[0].arrays == manifests[1].arrays
    assert {"patches", "cls", "labels", "names", "flipped", "classes", "mean", "var"} <= set(manifests[0].arrays)
    with h5py.File(first) as one, h5py.File(second) as two:
        for name, array in manifests[0].arrays.items():
            assert one[name].dtype == two[name].dtype
            count = array.shape[0]
            np.testing.assert_array_equal(one[name][:count], two[name][:count], err_msg=name)
    assert manifests[0].fingerprint == manifests[1].fingerprint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("images"), 90)


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted result."""
    path = tmp_path_factory.mktemp("whole") / "latents.h5"
    encode_images(folder, path, PIXELS, Progress())
    return path


def test_pixels_come_back_exactly(folder: Path, whole: Path) -> None:
    with open_latents(whole) as latents:
        tokenizer = build_tokenizer(latents.tokenizer, CPU)
        images = tokenizer.decode(torch.from_numpy(latents.patches(slice(None)).astype(np.float32)))
        for image, name, label in zip(images, latents.names(), latents.labels, strict=True):
            with Image.open(folder / name) as expected:
                np.testing.assert_array_equal(image.permute(1, 2, 0), np.asarray(expected))
            assert latents.classes[label] == name.split("/")[0]
        np.testing.assert_allclose(latents.descriptors(slice(None)), tokenizer.describe(images), atol=1e-5)
        patches = latents.patches(slice(None)).astype(np.float64)
        np.testing.assert_allclose(latents.mean, patches.mean(0), atol=1e-14)
        np.testing.assert_allclose(latents.var, patches.var(0), rtol=1e-12)
        assert latents.manifest.details["image_root"] == str(folder.resolve())
        assert latents.manifest.config["image_size"] == 16
        assert latents.manifest.input("images") is not None


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"batch_size": 90}, {"workers": 2, "batch_size": 33}])
def test_batch_size_and_workers_change_nothing(
    folder: Path, whole: Path, tmp_path: Path, changes: dict[str, int]
) -> None:
    config = make(EncodeConfig, {"tokenizer": "pixels", "batch_size": 7, "workers": 0} | changes)
    encode_images(folder, tmp_path / "latents.h5", config, Progress())
    with h5py.File(whole) as one, h5py.File(tmp_path / "latents.h5") as two:
        for name in ("patches", "names", "labels", "mean", "var"):
            np.testing.assert_array_equal(one[name][...], two[name][...], err_msg=name)
        np.testing.assert_allclose(one["cls"][...], two["cls"][...], atol=1e-5)


@pytest.mark.parametrize("images", [1, 14, 70, 84, 90])
def test_an_interrupted_encoding_resumes(folder: Path, whole: Path, tmp_path: Path, images: int) -> None:
    output = tmp_path / "latents.h5"
    with pytest.raises(KeyboardInterrupt):
        encode_images(folder, output, PIXELS, Stop(images))
    assert not output.exists()
    notes = Notes()
    encode_images(folder, output, PIXELS, notes)
    done = min(-(-images // 7) * 7, 90)
    assert any(f"resuming after {done} images" in line for line in notes.lines)
    assert_same_datasets(output, whole)
    assert [path.name for path in tmp_path.iterdir()] == ["latents.h5"]


class Slow(Progress):
    """Says when a batch is done, leaves time to be killed, and waits for it after ``limit`` batches."""

    def __init__(self, batches: "Queue[int]", limit: int) -> None:
        self._batches, self._left = batches, limit

    def advance(self, count: int = 1, figures: object = None) -> None:
        self._batches.put(count)
        self._left -= 1
        time.sleep(0.02 if self._left else 60)


def _encode_in_child(folder: Path, output: Path, state_seconds: float, limit: int, batches: "Queue[int]") -> None:
    if limit > 90:  # where the finished file is renamed
        Output.publish = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    encode_images(folder, output, PIXELS, Slow(batches, limit), state_seconds)


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes forked from a clean one that has the modules ready."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gmtool.stages.encode.run", "sklearn.decomposition"])
    return context


@pytest.mark.parametrize("state_seconds", [0.0, 0.05, 1e9])
@pytest.mark.slow
def test_killed_at_many_moments_it_still_ends_the_same(
    folder: Path, whole: Path, tmp_path: Path, processes: ForkServerContext, state_seconds: float
) -> None:
    output = tmp_path / "latents.h5"
    # as the file is laid out, in and between the first batches, and later
    for batches, delay in [(0, 0.0), (0, 0.002), (1, 0.0), (1, 0.018), (2, 0.012), (2, 0.021)]:
        queue = processes.SimpleQueue()
        child = processes.Process(target=_encode_in_child, args=(folder, output, state_seconds, batches + 1, queue))
        child.start()
        for _ in range(batches):
            queue.get()
        deadline = time.monotonic() + 60
        while not part(output).exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(delay)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert not output.exists()
    encode_images(folder, output, PIXELS, Progress())
    assert_same_datasets(output, whole)
    assert [path.name for path in tmp_path.iterdir()] == ["latents.h5"]


@pytest.mark.slow
def test_killed_between_finishing_and_renaming(
    folder: Path, whole: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    output = tmp_path / "latents.h5"
    queue = processes.SimpleQueue()
    child = processes.Process(target=_encode_in_child, args=(folder, output, 0.0, 91, queue))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert part(output).exists()
    encode_images(folder, output, PIXELS, Progress())
    assert_same_datasets(output, whole)


def test_a_damaged_part_is_begun_again(folder: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "latents.h5"
    for spoilt in (part(output), resume_file(folder, output).path):
        with pytest.raises(KeyboardInterrupt):
            encode_images(folder, output, PIXELS, Stop(30))
        spoilt.write_bytes(b"neither HDF5 nor a state")
        notes = Notes()
        encode_images(folder, output, PIXELS, notes)
        (line,) = [line_noted for line_noted in notes.lines if "starting over" in line_noted]
        assert line.startswith(f"{spoilt} is damaged")
        assert_same_datasets(output, whole)
        output.unlink()


def test_two_encodings_to_one_file_do_not_mix(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "latents.h5"
    with pytest.raises(KeyboardInterrupt):
        encode_images(folder, output, PIXELS, Stop(30))
    code = (
        "import sys; from pathlib import Path; from gmtool.artifacts.outputs import output_of\n"
        "with output_of(Path(sys.argv[1]), 'latents').locked(): print('open', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(gmtool.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(output)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError, match="is in use by process"):
            encode_images(folder, output, PIXELS, Progress())
    assert resume_file(folder, output).load(Progress()) is not None


def test_other_settings_start_over(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "latents.h5"
    with pytest.raises(KeyboardInterrupt):
        encode_images(folder, output, PIXELS, Stop(30))
    notes = Notes()
    encode_images(folder, output, EncodeConfig(TokenizerSettings("pixels", patch_size=4), workers=0), notes)
    assert any("starting over" in line for line in notes.lines)
    with open_latents(output) as latents:
        assert latents.shape == (48, 4, 4)


def test_a_finished_file_is_left_or_replaced_when_whole(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "latents.h5"
    first = encode_images(folder, output, PIXELS, Progress())
    before = output.stat().st_mtime_ns
    again = encode_images(folder, output, PIXELS, Progress())
    assert (first.fresh, again.fresh, again.samples) == (True, False, 90)
    assert output.stat().st_mtime_ns == before
    other = EncodeConfig(TokenizerSettings("pixels"), limit=10, workers=0)
    with pytest.raises(KeyboardInterrupt):
        encode_images(folder, output, other, Stop(1))
    assert len(open_latents(output)) == 90
    assert not encode_images(folder, output, PIXELS, Progress()).fresh
    assert [path.name for path in tmp_path.iterdir()] == ["latents.h5"]  # what the other settings had begun is gone
    encode_images(folder, output, other, Progress())
    assert len(open_latents(output)) == 10


def test_another_kind_of_file_is_not_overwritten(folder: Path, tmp_path: Path, whole: Path) -> None:
    output = tmp_path / "latents.h5"
    with h5py.File(output, "w") as file:
        file.attrs["manifest"] = "of a mixture"
    for content in (b"a letter", whole.read_bytes()[:10_000], b"the end"):
        with pytest.raises(UserError, match="no latents file that can be read: choose another name"):
            encode_images(folder, output, PIXELS, Progress())
        output.write_bytes(content)
    assert output.read_bytes() == b"the end"


def test_flips_follow_their_images(folder: Path, tmp_path: Path) -> None:
    config = EncodeConfig(TokenizerSettings("pixels", patch_size=1), flip="both", batch_size=4, workers=0, limit=10)
    report = encode_images(folder, tmp_path / "latents.h5", config, Progress())
    assert report.samples == 20
    with open_latents(tmp_path / "latents.h5") as latents:
        patches = latents.patches(slice(None))
        np.testing.assert_array_equal(patches[1::2], patches[::2, :, :, ::-1])
        assert latents.flipped.tolist() == [False, True] * 10
        assert latents.names()[::2] == latents.names()[1::2]
        assert latents.names()[2] == "a/009.png"  # spread evenly over the 90
        np.testing.assert_array_equal(latents.labels[::2], latents.labels[1::2])


def test_random_flips_are_one_an_image_and_the_seeds(folder: Path, tmp_path: Path) -> None:
    def encoded(name: str, batch_size: int = 4, **changes: Any) -> tuple[np.ndarray, np.ndarray]:
        config = EncodeConfig(TokenizerSettings("pixels", patch_size=1), batch_size=batch_size, workers=0, **changes)
        encode_images(folder, tmp_path / name, config, Progress())
        with open_latents(tmp_path / name) as latents:
            return latents.patches(slice(None)), latents.flipped

    plain, _ = encoded("plain.h5")
    patches, flipped = encoded("random.h5", flip="random")
    assert 20 < flipped.sum() < 70 and len(patches) == 90
    np.testing.assert_array_equal(patches, np.where(flipped[:, None, None, None], plain[..., ::-1], plain))
    again, its_flips = encoded("again.h5", batch_size=7, flip="random")
    np.testing.assert_array_equal(again, patches)
    np.testing.assert_array_equal(its_flips, flipped)
    _, others = encoded("random.h5", flip="random", seed=1)  # another file, which replaces it
    assert (others != flipped).any()


def test_bad_images_stop_or_are_left_out(tmp_path: Path) -> None:
    folder = paint(tmp_path / "images", 30)
    (folder / "a/003.png").write_text("no image")
    (folder / "c/029.png").write_bytes((folder / "c/029.png").read_bytes()[:200])
    output = tmp_path / "latents.h5"
    with pytest.raises(UserError, match=r"a/003\.png.*--skip-bad"):
        encode_images(folder, output, PIXELS, Progress())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
    # one image per batch: then a gap does not change which images are computed together
    skipping = EncodeConfig(TokenizerSettings("pixels", channels=3), batch_size=1, workers=0, skip_bad=True)
    with pytest.raises(KeyboardInterrupt):
        encode_images(folder, output, skipping, Stop(8))
    with pytest.raises(UserError, match=r"a/003\.png.*--skip-bad"):  # nor does what was begun with gaps
        encode_images(folder, output, replace(skipping, skip_bad=False), Progress())
    notes = Notes()
    report = encode_images(folder, output, skipping, notes)
    assert "resuming after 8 images encoded earlier" in notes.lines
    assert report.samples == 28
    assert [bad.name for bad in report.skipped] == ["a/003.png", "c/029.png"]
    shutil.copytree(folder, tmp_path / "good")
    (tmp_path / "good/a/003.png").unlink()
    (tmp_path / "good/c/029.png").unlink()
    encode_images(tmp_path / "good", tmp_path / "good.h5", replace(skipping, skip_bad=False), Progress())
    assert_same_datasets(output, tmp_path / "good.h5")
    with pytest.raises(UserError, match="003"):  # a file with gaps does not answer a call that allows none
        encode_images(folder, output, PIXELS, Progress())


def test_no_good_image_at_all(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/x.png").write_text("no image")
    for size in (None, 8):
        config = EncodeConfig(TokenizerSettings("pixels", image_size=size), workers=0, skip_bad=True)
        with pytest.raises(UserError, match="none of its 1 images"):
            encode_images(tmp_path / "images", tmp_path / "latents.h5", config, Progress())
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_grey_is_found_and_colour_is_named(tmp_path: Path) -> None:
    folder = paint(tmp_path / "images", 12, size=8, colour=False)
    assert plan_encoding(folder, tmp_path / "latents.h5", PIXELS).layout.shape == (1, 8, 8)
    Image.new("RGB", (8, 8), (200, 0, 0)).save(folder / "b/colour.png")
    assert plan_encoding(folder, tmp_path / "latents.h5", PIXELS).layout.shape == (3, 8, 8)
    with pytest.raises(UserError, match=r"b/colour\.png.*--channels 3"):
        encode_images(
            folder,
            tmp_path / "latents.h5",
            EncodeConfig(TokenizerSettings("pixels", channels=1), workers=0),
            Progress(),
        )


def test_a_dinov2_from_a_folder(folder: Path, tmp_path: Path) -> None:
    config = EncodeConfig(TokenizerSettings(str(ENCODER), image_size=32), batch_size=4, workers=0, limit=10)
    output = tmp_path / "latents.h5"
    with pytest.raises(KeyboardInterrupt):
        encode_images(folder, output, config, Stop(5))
    report = encode_images(folder, output, config, Progress())
    assert (report.samples, report.shape, report.descriptor_size) == (10, (32, 2, 2), 32)
    encode_images(folder, tmp_path / "once.h5", config, Progress())
    assert_same_datasets(output, tmp_path / "once.h5")
    with open_latents(output) as latents:
        tokenizer = build_tokenizer(latents.tokenizer, CPU)
        with Image.open(folder / latents.names()[7]) as image:
            pixels = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1).copy()
        encoded = tokenizer.encode(torch.from_numpy(pixels)[None])
        np.testing.assert_allclose(latents.patches([7]), encoded.patches, atol=2e-3)
        np.testing.assert_allclose(latents.descriptors([7]), encoded.descriptors, atol=1e-5)


@pytest.mark.parametrize(("value", "words"), [(float("nan"), "not finite"), (1e6, "beyond the range of float16")])
def test_latents_that_cannot_be_stored(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, words: str
) -> None:
    import safetensors.torch

    weights = safetensors.torch.load_file(ENCODER / "model.safetensors")
    model = shutil.copytree(ENCODER, tmp_path / "model")
    if np.isnan(value):
        weights["embeddings.cls_token"][:] = value
        safetensors.torch.save_file(weights, model / "model.safetensors")
    else:
        monkeypatch.setattr("gmtool.tokenizers.encoder.Encoder.encode", lambda self, images: _huge(len(images), value))
    config = EncodeConfig(TokenizerSettings(str(model), image_size=32), batch_size=4, workers=0)
    with pytest.raises(UserError, match=words):
        encode_images(folder, tmp_path / "latents.h5", config, Progress())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def _huge(count: int, value: float) -> object:
    from gmtool.tokenizers.base import Encoded

    return Encoded(torch.full((count, 32, 2, 2), value), torch.zeros(count, 32))


def test_what_does_not_fit_is_refused_first(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmtool.artifacts.files.free_bytes", lambda path: 10_000)
    with pytest.raises(MachineError, match=r"only 9\.8 KiB are free"):
        encode_images(folder, tmp_path / "latents.h5", PIXELS, Progress())
    assert list(tmp_path.iterdir()) == []


def test_the_plan_says_what_will_be_written(folder: Path, whole: Path, tmp_path: Path) -> None:
    plan = plan_encoding(folder, tmp_path / "new/latents.h5", PIXELS)
    assert plan.layout.bytes() == pytest.approx(whole.stat().st_size, rel=0.1)
    forecast = plan.forecast()
    assert "90 images, 3 classes" in forecast.title
    assert "90 samples of 12 x 8 x 8" in dict(forecast.work)["makes"]
    assert forecast.reads[0].bytes == sum(path.stat().st_size for path in folder.rglob("*.png"))
    assert {choice.flag: choice.value for choice in forecast.choices} | {"--image-size": "16", "--channels": "3"} == {
        choice.flag: choice.value for choice in forecast.choices
    }
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tokenizer": "pixels", "patch_size": 5}, "--patch-size 5 does not divide"),
        ({"tokenizer": "pixels", "channels": 2}, "--channels must be 1"),
        ({"tokenizer": str(ENCODER), "patch_size": 4}, "--patch-size is a setting of --tokenizer pixels"),
        ({"tokenizer": str(ENCODER), "channels": 3}, "--channels is a setting of --tokenizer pixels"),
        ({"tokenizer": str(ENCODER), "image_size": 8}, "--image-size must be at least 16"),
    ],
)
def test_settings_that_do_not_go_together(
    folder: Path, tmp_path: Path, settings: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        encode_images(folder, tmp_path / "latents.h5", make(EncodeConfig, {"workers": 0, **settings}), Progress())
    assert list(tmp_path.iterdir()) == []


def test_the_state_is_saved_now_and_then(folder: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    class Monitoring(Progress):
        def advance(self, count: int = 1, figures: object = None) -> None:
            state = resume_file(folder, tmp_path / "latents.h5").load(Progress())
            assert state is not None
            seen.append(state.record["images"])

    encode_images(folder, tmp_path / "latents.h5", PIXELS, Monitoring(), save_seconds=0.0)
    assert seen == list(range(0, 90, 7))
    assert [path.name for path in tmp_path.iterdir()] == ["latents.h5"]


def test_classes_without_an_image_are_counted_and_named(tmp_path: Path) -> None:
    """By --limit, or since none of theirs can be read: a network cannot have learned them."""
    folder = paint(tmp_path / "images", 30)
    for path in (folder / "b").iterdir():
        path.write_text("no image")
    config = EncodeConfig(TokenizerSettings("pixels"), batch_size=7, workers=0, skip_bad=True, flip="both")
    with pytest.raises(KeyboardInterrupt):
        encode_images(folder, tmp_path / "latents.h5", config, Stop(14))
    report = encode_images(folder, tmp_path / "latents.h5", config, Progress())
    assert report.empty_classes == "1 (b)"
    with open_latents(tmp_path / "latents.h5") as latents:
        assert latents.classes == ("a", "b", "c")
        assert latents.manifest.details["class_counts"] == [20, 0, 20]
        np.testing.assert_array_equal(np.bincount(latents.labels, minlength=3), [20, 0, 20])
    few = EncodeConfig(TokenizerSettings("pixels"), workers=0, limit=2, skip_bad=True)
    assert dict(plan_encoding(folder, tmp_path / "few.h5", few).forecast().work)["classes without images"] == "1 (c)"


def test_an_image_changed_in_place_is_encoded_again(tmp_path: Path) -> None:
    """Its size in bytes does not tell: a BMP's never does."""
    folder, output = tmp_path / "images", tmp_path / "latents.h5"
    folder.mkdir()
    for index in range(20):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / f"{index:02}.bmp")
    encode_images(folder, output, PIXELS, Progress())
    Image.new("RGB", (8, 8), (200, 100, 0)).save(folder / "03.bmp")
    assert encode_images(folder, output, PIXELS, Progress()).fresh
    assert not encode_images(folder, output, PIXELS, Progress()).fresh
    with open_latents(output) as latents:
        image = build_tokenizer(latents.tokenizer, CPU).decode(torch.from_numpy(latents.patches([3])).float())
    assert image[0, :, 0, 0].tolist() == [200, 100, 0]
    output.unlink()
    with pytest.raises(KeyboardInterrupt):
        encode_images(folder, output, PIXELS, Stop(14))
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "03.bmp")
    notes = Notes()
    encode_images(folder, output, PIXELS, notes)
    assert any("starting over" in line for line in notes.lines)


def test_what_is_left_out_is_said(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "images")
    (copy / "a/notes.txt").write_text("about the images")
    (copy / "b/gone.png").symlink_to("nowhere.png")
    notes = Notes()
    encode_images(copy, tmp_path / "latents.h5", PIXELS, notes)
    assert "left out: 1 files that are no images (a/notes.txt)" in notes.lines
    assert "left out: 1 links that lead nowhere, or out of the archive (b/gone.png)" in notes.lines
    plan = plan_encoding(copy, tmp_path / "latents.h5", PIXELS)
    assert [text for name, text in plan.forecast().work if name == "leaves out"] == [
        line.removeprefix("left out: ") for line in notes.lines if line.startswith("left out: ")
    ]


@pytest.mark.parametrize("lacking", ["skipped", "counts"])
def test_a_state_of_another_version_is_as_good_as_none(folder: Path, tmp_path: Path, lacking: str) -> None:
    """Such as one written before a field was added."""
    with pytest.raises(KeyboardInterrupt):
        encode_images(folder, tmp_path / "latents.h5", PIXELS, Stop(14))
    file = plan_encoding(folder, tmp_path / "latents.h5", PIXELS).resume_file
    saved = file.load(Progress())
    assert saved is not None
    record, arrays = ({k: v for k, v in some.items() if k != lacking} for some in (saved.record, saved.arrays))
    file.save(ResumeState(record, arrays))
    notes = Notes()
    assert encode_images(folder, tmp_path / "latents.h5", PIXELS, notes).fresh
    assert any("was written by another version of gmtool: starting over" in line for line in notes.lines)
    encode_images(folder, tmp_path / "whole.h5", PIXELS, Progress())
    with open_latents(tmp_path / "latents.h5") as latents, open_latents(tmp_path / "whole.h5") as whole:
        assert latents.manifest.fingerprint == whole.manifest.fingerprint
