"""A campaign in small: damaged and hostile files of other programs, each refused in one line or read as it was."""

import io
import json
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.mixture import GaussianMixture

from gmtool.errors import UserError
from gmtool.foreign.gmflow import read_gmflow
from gmtool.foreign.mixtures import read_mixture
from gmtool.foreign.rae_decoder import read_decoder
from gmtool.foreign.torch_files import read_checkpoint, read_statistics

SHAPE = (2, 3, 3)
MARK = "gmtool-was-here"


def weights() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {"blocks.0.weight": torch.randn(8, 5, generator=draw), "bias": torch.randn(7, generator=draw)}


def checkpoint_file(path: Path) -> None:
    torch.save({"ema": weights(), "model": weights(), "train_steps": 7}, path)


def statistics_file(path: Path) -> None:
    draw = torch.Generator().manual_seed(1)
    torch.save({"mean": torch.randn(SHAPE, generator=draw), "var": torch.rand(SHAPE, generator=draw)}, path)


def safetensors_file(path: Path) -> None:
    save_file(weights(), path)


def fitted() -> GaussianMixture:
    return GaussianMixture(3, covariance_type="diag", random_state=0).fit(np.random.default_rng(0).normal(size=(60, 4)))


def mixture_file(path: Path) -> None:
    path.write_bytes(pickle.dumps({"model": fitted()}, 2))


def numbers_of_checkpoint(path: Path) -> dict[str, Any]:
    read = read_checkpoint(path)
    return dict(read.ema)


def numbers_of_statistics(path: Path) -> dict[str, Any]:
    read = read_statistics(path, SHAPE)
    return {"mean": read.mean, "std": read.std}


def numbers_of_mixture(path: Path) -> dict[str, Any]:
    return {name: torch.from_numpy(np.array(array)) for name, array in vars(read_mixture(path)).items()}


Writer, Reader = Callable[[Path], None], Callable[[Path], dict[str, Any]]
FILES: Mapping[str, tuple[Writer, Reader]] = {
    "checkpoint.pt": (checkpoint_file, numbers_of_checkpoint),
    "stat.pt": (statistics_file, numbers_of_statistics),
    "weights.safetensors": (safetensors_file, numbers_of_checkpoint),
    "mixture.pkl": (mixture_file, numbers_of_mixture),
}


def outcome(read: Reader, path: Path) -> dict[str, Any] | None:
    """What is read; None where it is refused, which must be in one line that names the file."""
    try:
        return read(path)
    except UserError as error:
        text = str(error)
        assert "\n" not in text and path.name in text and len(text) < 500, text
        return None


def equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_one_line(tmp_path: Path, name: str) -> None:
    write, read = FILES[name]
    write(tmp_path / name)
    raw = (tmp_path / name).read_bytes()
    for length in {0, 1, 4, *range(7, len(raw), max(1, len(raw) // 40)), len(raw) - 1}:
        (tmp_path / name).write_bytes(raw[:length])
        assert outcome(read, tmp_path / name) is None, length


@pytest.mark.parametrize("name", ["checkpoint.pt", "stat.pt"])
def test_a_flipped_byte_of_a_checkpoint_is_never_another_number(tmp_path: Path, name: str) -> None:
    write, read = FILES[name]
    write(tmp_path / name)
    raw, expected = (tmp_path / name).read_bytes(), read(tmp_path / name)
    refused = 0
    for position in range(0, len(raw), max(1, len(raw) // 200)):
        (tmp_path / name).write_bytes(raw[:position] + bytes([raw[position] ^ 0x41]) + raw[position + 1 :])
        result = outcome(read, tmp_path / name)
        refused += result is None
        assert result is None or equal(result, expected), position
    assert refused > 50


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights.safetensors", "mixture.pkl"])
def test_a_flipped_byte_of_a_file_without_checksums_is_one_line_at_most(tmp_path: Path, name: str) -> None:
    write, read = FILES[name]
    write(tmp_path / name)
    raw = (tmp_path / name).read_bytes()
    for position in range(0, len(raw), max(1, len(raw) // 200)):
        for flip in (0x01, 0x80, 0xFF):
            (tmp_path / name).write_bytes(raw[:position] + bytes([raw[position] ^ flip]) + raw[position + 1 :])
            outcome(read, tmp_path / name)


def grown(levels: int, join: bytes = b"\x86") -> bytes:
    """A tuple of two of the tuple before, and so on: 2^levels parts in 3 bytes a level."""
    return b")" + (b"2" + join) * levels


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


HEAD = b"\x80\x02"
CALL = b"cposix\nsystem\n" + text(f"touch {MARK}") + b"\x85R"
HOSTILE: Mapping[str, bytes] = {
    "nothing": b"",
    "the end alone": b".",
    "an unknown opcode": HEAD + b"\xff.",
    "no end": HEAD + b"K\x01",
    "a call": HEAD + CALL + b".",
    "a call in a dict": HEAD + b"}" + text("ema") + CALL + b"s.",
    "a call thrown away": HEAD + CALL + b"0}.",
    "a call of a text": HEAD + text("os") + b")R.",
    "a call without a tuple": HEAD + b"cnumpy\ndtype\nK\x01R.",
    "a call of getattr": HEAD + b"c__builtin__\ngetattr\n" + text("x") + text("y") + b"\x86R.",
    "a call of eval": HEAD + b"c__builtin__\neval\n" + text(f"open('{MARK}','w')") + b"\x85R.",
    "an instance": b"(" + text(f"touch {MARK}") + b"iposix\nsystem\n.",
    "an object": b"(cposix\nsystem\n" + text(f"touch {MARK}") + b"o.",
    "a new object with keywords": b"\x80\x04cposix\nsystem\n)}\x92.",
    "an extension": HEAD + b"\x82\x01.",
    "a persistent id": b"Pid\n.",
    "a persistent id of nested tuples": HEAD + grown(60) + b"Q.",
    "a buffer from outside": b"\x80\x05\x97.",
    "a name of no text": HEAD + b"K\x01K\x02\x93.",
    "a name with dots": b"\x80\x04" + text("numpy") + text("dtype.__init__.__globals__") + b"\x93.",
    "a state of a text": HEAD + text("x") + b"}b.",
    "a state of a list": HEAD + b"]}b.",
    "an item of a list": HEAD + b"]" + text("a") + b"Ns.",
    "items of a number": HEAD + b"K\x01(NNu.",
    "an odd number of items": HEAD + b"}(Nu.",
    "an append to a dict": HEAD + b"}Na.",
    "appends to nothing": HEAD + b"(Ne.",
    "a list as a key": HEAD + b"}]Ns.",
    "a dict as a key": HEAD + b"}}Ns.",
    "nested tuples as a key": HEAD + b"}" + grown(60) + b"Ns.",
    "nested tuples as a key of a Counter": HEAD + b"ccollections\nCounter\n}" + grown(60) + b"K\x01s\x85R.",
    "nested tuples in a set": HEAD + b"c__builtin__\nset\n](" + grown(60) + b"e\x85R.",
    "nested tuples as a key of an OrderedDict": HEAD + b"ccollections\nOrderedDict\n)R" + grown(60) + b"Ns.",
    "nested triples as a key": HEAD + b"}" + b")" + b"22\x87" * 40 + b"Ns.",
    "a tuple of tuples, joined by marks, as a key": HEAD + b"})" + b"q\x00(" + b"h\x00h\x00tq\x00(" * 50 + b"Ns.",
    "lists in lists": HEAD + b"]" + b"]" * 20000 + b"a" * 20000 + b".",
    "tuples in tuples": HEAD + b"N" + b"\x85" * 50000 + b".",
    "a list in itself": HEAD + b"]q\x00h\x00a.",
    "an empty stack": HEAD + b"00\x85.",
    "a mark that is not there": HEAD + b"t.",
    "a memo that is not there": HEAD + b"h\x07.",
    "a memo far away": HEAD + b"Nr\xff\xff\xff\xff.",
    "a memo at a billion": HEAD + b"Np1000000000\n.",
    "bytes of 8 EiB": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f" + b".",
    "bytes of 16 GiB": b"\x80\x04\x8e" + struct.pack("<Q", 2**34) + b".",
    "a text of 4 GiB": HEAD + b"X\xff\xff\xff\xffabc.",
    "a text that is not UTF-8": HEAD + b"X\x02\x00\x00\x00\xff\xfe.",
    "a text of a surrogate": HEAD + b"Vab\\udc\n.",
    "a frame of 4 EiB": b"\x80\x04\x95" + b"\xff" * 7 + b"\x3f" + b"N.",
    "a number of 2 GB": HEAD + b"\x8b\xff\xff\xff\x7f.",
    "a negative length": HEAD + b"\x8b\xff\xff\xff\xff.",
    "a number of 10,000 digits": b"I" + b"9" * 10000 + b"\n.",
    "a number that is none": b"Inumber\n.",
    "an array of more than there is": HEAD + b"cnumpy\ndtype\n" + text("f8") + b"\x85R.",
    "a key of another kind": HEAD + b"}K\x01K\x02s.",
    "NaN as a key": HEAD + b"}G\x7f\xf8" + b"\x00" * 6 + b"Ns.",
    "a mixture without arrays": HEAD + b"csklearn.mixture._gaussian_mixture\nGaussianMixture\n)\x81}b.",
    "a mixture whose state is a list": HEAD + b"csklearn.mixture._gaussian_mixture\nGaussianMixture\n)\x81]b.",
    "a mixture without a state": HEAD + b"csklearn.mixture._gaussian_mixture\nGaussianMixture\n)\x81.",
}


def archive(path: Path, pickled: bytes, name: str = "archive/data.pkl", method: int = zipfile.ZIP_STORED) -> None:
    """As torch.save lays a checkpoint out, with one storage."""
    with zipfile.ZipFile(path, "w", method) as file:
        for part, content in (
            (name, pickled),
            ("archive/byteorder", b"little"),
            ("archive/data/0", bytes(16)),
            ("archive/version", b"3\n"),
        ):
            file.writestr(part, content)


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.pkl").write_bytes(HOSTILE[name])
    assert outcome(numbers_of_mixture, tmp_path / "file.pkl") is None
    archive(tmp_path / "file.pt", HOSTILE[name])
    assert outcome(numbers_of_checkpoint, tmp_path / "file.pt") is None
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file.pkl", "file.pt"]


def whole(value: int) -> bytes:
    return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)


def tensor(
    sizes: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, storage: str = "FloatStorage", numbers: int = 4
) -> bytes:
    """A dict of one tensor, pickled as torch.save does, of ``numbers`` numbers in its storage."""
    place = b"(" + text("storage") + f"ctorch\n{storage}\n".encode() + text("0") + text("cpu") + whole(numbers) + b"tQ"
    shape = b"".join(b"(" + b"".join(map(whole, extents)) + b"t" for extents in (sizes, strides))
    head = HEAD + b"}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n("
    return head + place + whole(offset) + shape + b"\x89ccollections\nOrderedDict\n)RtRs."


def test_a_tensor_that_is_whole_is_read(tmp_path: Path) -> None:
    archive(tmp_path / "file.pt", tensor((4,), (1,)))
    assert torch.equal(read_checkpoint(tmp_path / "file.pt").ema["w"], torch.zeros(4))


@pytest.mark.parametrize(
    "pickled",
    [
        tensor((10**6, 10**6), (0, 0)),  # one number, said a million million times
        tensor((2**62,), (0,)),
        tensor((5,), (1,)),
        tensor((4,), (1,), offset=1),
        tensor((4,), (1,), offset=-1),
        tensor((-1,), (1,)),
        tensor((4,), (1,), storage="LongStorage", numbers=2),
        tensor((4,), (1,), storage="ComplexFloatStorage", numbers=2),
        tensor((4,), (1,), storage="NoStorage"),
        tensor((10**9,), (1,), numbers=10**9),
        HEAD + b"}" + text("w") + b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat32\n"
        b"(J\x00\x00\x00\x40J\x00\x00\x00\x40t(K\x01K\x01t\x89tRs.",
        HEAD + b"ccollections\nOrderedDict\n)R}" + text("get") + text("no function") + b"sb.",
    ],
)
def test_a_tensor_that_is_not_in_the_file_is_one_line(tmp_path: Path, pickled: bytes) -> None:
    archive(tmp_path / "file.pt", pickled)
    assert outcome(numbers_of_checkpoint, tmp_path / "file.pt") is None


def test_archives_that_torch_would_not_write_are_one_line(tmp_path: Path) -> None:
    path, good = tmp_path / "file.pt", tensor((4,), (1,))
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        archive(path, good + bytes(2**20), method=method)
        assert outcome(numbers_of_checkpoint, path) is None
    archive(path, good, name="archive/DATA.PKL".swapcase())
    outcome(numbers_of_checkpoint, path)
    archive(path, HOSTILE["nested tuples as a key"], name="archive/DATA.PKL")  # PyTorch's reader sees no difference
    assert outcome(numbers_of_checkpoint, path) is None
    archive(path, good, name="../../archive/data.pkl")
    outcome(numbers_of_checkpoint, path)
    with zipfile.ZipFile(path, "w"):
        pass
    assert outcome(numbers_of_checkpoint, path) is None
    torch.save({"ema": weights()}, path, _use_new_zipfile_serialization=False)
    assert outcome(numbers_of_checkpoint, path) is None
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    assert outcome(numbers_of_checkpoint, path) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights_": np.array([np.nan, 0.5, 0.5])}, "not finite"),
        ({"weights_": np.array([-0.5, 1.0, 0.5])}, "weights that sum"),
        ({"covariances_": np.full((3, 4), -1e-3)}, "variances below 0"),
        ({"covariances_": np.full((3, 4), np.inf)}, "not finite"),
        ({"means_": np.full((3, 4), np.nan)}, "not finite"),
        ({"means_": np.zeros((3, 5))}, "do not fit together"),
        (
            {"means_": np.zeros((0, 4)), "weights_": np.zeros(0), "covariances_": np.zeros((0, 4))},
            "do not fit together",
        ),
        ({"means_": np.array(["a"])}, "asks for|something else than numbers|without"),
        ({"covariance_type": ["diag"]}, "unknown covariance"),
    ],
)
def test_a_mixture_that_is_no_distribution_is_one_line(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    model = fitted()
    vars(model).update(changes)
    (tmp_path / "mixture.pkl").write_bytes(pickle.dumps(model))
    with pytest.raises(UserError, match=words):
        read_mixture(tmp_path / "mixture.pkl")
    assert outcome(numbers_of_mixture, tmp_path / "mixture.pkl") is None


SETTINGS: Mapping[str, list[Any]] = {
    "sample_size": [0, -8, "32", None, 1e300, 2**62, [8]],
    "in_channels": [0, "4", 2**40],
    "patch_size": [0, -1, 3, 1.5],
    "num_layers": [0, 10**9, "2", 1e9],
    "num_attention_heads": [0, 2**33, None],
    "attention_head_dim": [0, 7, 2**40],
    "num_embeds_ada_norm": [-1, 10**12, "10"],
    "num_gaussians": [0, 10**12, {}],
    "constant_logstd": ["x", 1e9, float("nan")],
}


@pytest.fixture
def gmflow(tmp_path: Path) -> Path:
    folder = tmp_path / "gmflow"
    (folder / "transformer").mkdir(parents=True)
    (folder / "scheduler").mkdir()
    (folder / "transformer/config.json").write_bytes((golden.DATA / "gmdit.json").read_bytes())
    save_file(load_file(golden.DATA / "gmdit.safetensors"), folder / "transformer/model.safetensors")
    (folder / "model_index.json").write_text(json.dumps({"id2label": {str(index): "thing" for index in range(10)}}))
    (folder / "scheduler/scheduler_config.json").write_text('{"shift": 2.0}')
    return folder


def refused(folder: Path) -> bool:
    try:
        read_gmflow(folder)
    except UserError as error:
        assert "\n" not in str(error) and str(folder) in str(error) and len(str(error)) < 500
        return True
    return False


def test_settings_that_do_not_fit_the_weights_are_one_line(gmflow: Path) -> None:
    assert not refused(gmflow)
    path = gmflow / "transformer/config.json"
    good = json.loads(path.read_text())
    for name, values in SETTINGS.items():
        for value in values:
            path.write_text(json.dumps(good | {name: value}))
            assert refused(gmflow), (name, value)
        path.write_text(json.dumps({key: value for key, value in good.items() if key != name}))
        assert refused(gmflow) or name == "constant_logstd", name


@pytest.mark.parametrize("name", ["transformer/config.json", "model_index.json", "scheduler/scheduler_config.json"])
def test_odd_json_is_one_line(gmflow: Path, name: str) -> None:
    path = gmflow / name
    raw = path.read_bytes()
    for odd in (
        *(b"", b"{", b"[]", b"null", b"3", b'"text"', b"\xff\xfe", b"\x00" * 9, b"{'a': 1}", b'{"a": 1,}'),
        *(b"[" * 100_000, b'{"a":' * 100_000, b'{"a": ' + b"9" * 5000 + b"}", raw[:-3], raw.decode().encode("utf-16")),
    ):
        path.write_bytes(odd)
        assert refused(gmflow), odd[:20]


@pytest.mark.parametrize("shift", ['"2"', "null", "-1", "0", "Infinity", "NaN", "[1]", "true", "1" * 400])
def test_a_shift_that_is_no_number_is_one_line(gmflow: Path, shift: str) -> None:
    (gmflow / "scheduler/scheduler_config.json").write_text(f'{{"shift": {shift}}}')
    assert refused(gmflow)


def test_what_is_no_file_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "zero", "loop", "folder", "missing"):
        for read in (numbers_of_checkpoint, numbers_of_statistics, numbers_of_mixture, read_decoder):
            assert outcome(read, tmp_path / name) is None  # type: ignore[arg-type]
        (tmp_path / f"{name}.safetensors").symlink_to(tmp_path / name)
        assert outcome(numbers_of_checkpoint, tmp_path / f"{name}.safetensors") is None


def test_weights_that_are_not_finite_are_one_line(gmflow: Path) -> None:
    path = gmflow / "transformer/model.safetensors"
    state = load_file(path)
    state["proj_out_1.bias"] = torch.full_like(state["proj_out_1.bias"], float("nan"))
    save_file(state, path)
    with pytest.raises(UserError, match=r"adaLN_out\.1\.bias holds numbers that are not finite"):
        read_gmflow(gmflow)


def test_a_decoder_of_odd_weights_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "decoder.pt"
    good = {"decoder_embed.weight": torch.zeros(768, 2), "decoder_pos_embed": torch.zeros(1, 5, 2)}
    for change in (
        {},
        {"decoder_embed.weight": torch.zeros(())},
        {"decoder_pos_embed": torch.zeros(1)},
        {"decoder_pos_embed": torch.zeros(1, 0, 2)},
        {"decoder_layers.": torch.zeros(1)},
    ):
        torch.save(good | change, path)
        assert outcome(read_decoder, path) is None  # type: ignore[arg-type]


def test_wrappers_around_names_come_off_however_many_there_are(tmp_path: Path) -> None:
    torch.save({"module." * 3000 + name: value for name, value in weights().items()}, tmp_path / "file.pt")
    assert equal(read_checkpoint(tmp_path / "file.pt").ema, weights())
    assert sys.getrecursionlimit() < 3000


def test_a_checkpoint_in_the_memory_of_python(tmp_path: Path) -> None:
    """What is read is what torch.save wrote, of every floating type, also through views of one storage."""
    shared = torch.arange(12.0)
    content = {"half": torch.ones(3).half(), "bfloat16": torch.ones(2).bfloat16(), "double": torch.ones(2).double()}
    content |= {"view": shared[2:8].view(2, 3).t(), "whole": shared, "scalar": torch.tensor(1.5)}
    stream = io.BytesIO()
    torch.save(content, stream)
    (tmp_path / "file.pt").write_bytes(stream.getvalue())
    assert equal(read_checkpoint(tmp_path / "file.pt").ema, content)
