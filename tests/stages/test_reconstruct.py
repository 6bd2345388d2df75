"""``gmtool reconstruct`` as a user runs it."""

import csv
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import DATA
from PIL import Image
from safetensors.torch import load_file, save_file
from small import Small
from user import held_by_another, torchrun

from gmtool.artifacts.manifest import Manifest
from gmtool.cli.app import execute, main
from gmtool.data.image_sets import find_images
from gmtool.data.images import image_batches
from gmtool.errors import UserError
from gmtool.reconstruction.network import DecoderSize, new_decoder, save_decoder
from gmtool.tokenizers.build import build_tokenizer
from gmtool.tokenizers.encoder import DINOV2
from gmtool.tokenizers.rae import record_encoder

pytest.importorskip("diffusers")

CPU = torch.device("cpu")
ENCODER = str(DATA / "rae_encoder")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a decoder with random weights, and VGG16 with random weights."""
    from torchvision.models import vgg16

    root = tmp_path_factory.mktemp("reconstruct")
    (root / "images").mkdir()
    draw = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / "images" / f"{number}.png")
    spec = DINOV2.spec(ENCODER, 32)
    (root / "decoder").mkdir()
    save_decoder(new_decoder(DecoderSize(32, 1, 2, 64), spec, (32, 2, 2), 0), root / "decoder", spec)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save({f"features.{k}": v for k, v in vgg16(weights=None).features.state_dict().items()}, root / "vgg.pth")
    return root


def arguments(place: Path, output: Path, *more: str) -> list[str]:
    return [
        *("reconstruct", str(place / "images"), str(output), "--decoder", str(place / "decoder"), "--device", "cpu"),
        *("--workers", "0", "--features", "tokenizer", "--batch-size", "4", *more),
    ]


@pytest.mark.slow
def test_figures_are_those_of_encoding_and_decoding(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--lpips-weights", str(place / "vgg.pth"), "--pairs", "2", "--json")
    assert execute(arguments(place, tmp_path / "out", *more)) == 0
    report = json.loads(capsys.readouterr().out)
    tokenizer = build_tokenizer(DINOV2.spec(ENCODER, 32), CPU, decoder=str(place / "decoder"))
    images = torch.from_numpy(next(image_batches(find_images(place / "images"), 32, 6, workers=0)).images)
    made = tokenizer.decode(tokenizer.encode(images).patches)
    errors = made.double() - images.double()
    psnr = 10 * torch.log10(255**2 / errors.square().mean((1, 2, 3)))
    assert report["qualities"]["psnr"] == pytest.approx(
        {"mean": psnr.mean().item(), "std": psnr.std(correction=0).item()}, rel=1e-5
    )
    assert report["qualities"]["l1"]["mean"] == pytest.approx(errors.abs().mean().item() / 255, rel=1e-5)
    assert report["count"] == 6 and report["distances"][0]["extractor"] == "tokenizer"
    with (tmp_path / "out" / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [f"{number}.png" for number in range(6)]
    assert [float(row["psnr"]) for row in rows] == pytest.approx(psnr.tolist(), rel=1e-5)
    worst = sorted(rows, key=lambda row: -float(row["lpips"]))[:2]
    assert [image["name"] for image in report["worst"]] == [row["image"] for row in worst]
    with Image.open(tmp_path / "out" / "worst.png") as grid:
        tile = np.asarray(grid)[:32, :64]
    index = int(worst[0]["image"].split(".")[0])
    pair = torch.cat([images[index], made[index]], 2).permute(1, 2, 0).numpy()
    assert np.array_equal(tile, pair)


def test_a_table_offline(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gmtool.reconstruction import perceptual

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(perceptual, "VGG_URL", "http://127.0.0.1:9/vgg16-01234567.pth")
    for _ in range(2):  # what is written may be replaced
        assert execute(arguments(place, tmp_path / "out")) == 0
        shown = capsys.readouterr()
        assert "PSNR (dB)" in shown.out and "Fréchet distance, tokenizer" in shown.out and "worst by L1" in shown.out
        assert "no LPIPS" in shown.err and "that of --decoder" in shown.err
    assert main(arguments(place, tmp_path / "other", "--perceptual", "lpips")) == 1
    assert "--lpips-weights FILE, or use --perceptual none" in capsys.readouterr().err


@pytest.mark.slow
def test_statistics_that_do_not_belong(place: Path, tmp_path: Path) -> None:
    """Another encoder's, by its record; and, without one, by what they make of the latents."""
    latents = tmp_path / "latents.h5"
    encode = ["encode", str(place / "images"), "--workers", "0", "--device", "cpu", "--tokenizer"]
    assert execute([*encode, ENCODER, str(latents), "--image-size", "32"]) == 0
    assert execute(arguments(place, tmp_path / "out", "--statistics", str(latents), "--json")) == 0
    written = json.loads((tmp_path / "out" / "reconstruction.json").read_text())["details"]
    (statistics,) = written["statistics"].values()
    assert statistics == pytest.approx(1, abs=0.05)
    shape = (32, 2, 2)
    torch.save({"mean": torch.full(shape, 5.0), "var": torch.ones(shape)}, tmp_path / "stat.pt")
    torch.save({"mean": torch.zeros(8, 2, 2), "var": torch.ones(8, 2, 2)}, tmp_path / "small.pt")
    assert execute([*encode, "pixels", str(tmp_path / "pixels.h5")]) == 0
    for path, words in (
        ("stat.pt", "do not belong to these latents: .* mean square"),
        ("small.pt", "8 x 2 x 2"),
        ("pixels.h5", "are of latents of pixels"),
    ):
        with pytest.raises(UserError, match=words):
            execute(arguments(place, tmp_path / "none", "--statistics", str(tmp_path / path)))
    assert not (tmp_path / "none").exists()


def test_a_decoder_of_its_own_statistics(place: Path, tmp_path: Path) -> None:
    """diffusers keeps statistics in the configuration; wrong ones are found."""
    wrong = tmp_path / "decoder"
    wrong.mkdir()
    config = json.loads((place / "decoder" / "config.json").read_text())
    shape = (32, 2, 2)
    config |= {"latents_mean": torch.full(shape, 9.0).tolist(), "latents_std": torch.ones(shape).tolist()}
    (wrong / "config.json").write_text(json.dumps(config))
    record_encoder(wrong, DINOV2.spec(ENCODER, 32))
    weights = load_file(place / "decoder" / "diffusion_pytorch_model.safetensors")
    weights |= {"_latents_mean": torch.full(shape, 9.0), "_latents_std": torch.ones(shape)}
    save_file(weights, wrong / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match=r"the statistics in --decoder .* do not belong"):
        execute([*arguments(place, tmp_path / "out"), "--decoder", str(wrong)])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--tokenizer", ENCODER, "--image-size", "32", "--layers", "2"], "--layers"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--perceptual", "none", "--lpips-weights", "x.pth"], "--lpips-weights has no effect"),
        (["--decoder", "./nowhere"], "--decoder"),
        (["--decoder", str(DATA / "chain-0.1" / "run")], "is a training run: give what `gmtool train-decoder` writes"),
    ],
)
def test_bad_input_is_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    assert main(arguments(place, tmp_path / "out", *more)) == 2
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown.startswith("gmtool: error: ") and words in shown


def test_what_is_there_is_not_replaced(place: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds other things than reconstructions"):
        execute(arguments(place, tmp_path))


@pytest.mark.slow
def test_a_refused_publication_costs_no_work(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ("--perceptual", "none")
    assert execute(arguments(place, tmp_path / "whole", *more)) == 0

    def refuse(*_: object) -> None:
        raise UserError("in the way")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="in the way"):
        patch.setattr("gmtool.artifacts.outputs.Output.publish", refuse)
        execute(arguments(place, tmp_path / "out", *more))
    monkeypatch.setattr("gmtool.stages.reconstruct.run._reconstruct", None)
    assert execute(arguments(place, tmp_path / "out", *more)) == 0
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_a_second_process_is_told_who_is_at_it(place: Path, tmp_path: Path) -> None:
    with held_by_another(tmp_path / "out") as pid, pytest.raises(UserError, match=f"out is in use by process {pid}"):
        execute(arguments(place, tmp_path / "out"))


def test_what_a_killed_process_left_is_replaced(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it writes, it has left some files in its hidden folder."""
    plain = arguments(place, tmp_path / "out", "--perceptual", "none")
    pid = os.fork()
    if not pid:
        with monkeypatch.context() as patch:
            patch.setattr(Manifest, "to_json", lambda _: os.kill(os.getpid(), signal.SIGKILL))
            main(plain)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.gmtool" / "part" / "pairs.png").exists()
    assert execute(plain) == 0
    names = ["images.csv", "pairs.png", "reconstruction.json", "worst.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


WITHOUT = """
import os
from pathlib import Path
from gmtool.cli import app
from gmtool.errors import MachineError
from gmtool.stages.reconstruct import run

def gone(*_):
    raise MachineError("the weights are not here")

if os.environ["RANK"] == "{}":
    run.vgg_file = gone
else:
    run.vgg_file = lambda *_: Path({!r})
app.run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_compute_lpips_or_none_does(place: Path, tmp_path: Path, rank: int) -> None:
    (tmp_path / "script.py").write_text(WITHOUT.format(rank, str(place / "vgg.pth")))
    done = torchrun(["script.py", *arguments(place, tmp_path / "out")], tmp_path)
    if rank:
        assert done.returncode != 0 and "gmtool: error: the weights are not here" in done.stderr.splitlines()
    else:
        assert done.returncode == 0, done.stderr
        details = json.loads((tmp_path / "out" / "reconstruction.json").read_text())["details"]
        assert details["qualities"].keys() == {"psnr", "ssim", "l1"} and details["worst_by"] == "l1"


@pytest.mark.slow
def test_two_processes_and_any_name(place: Path, tmp_path: Path) -> None:
    """The second has no image; the name of the only one holds all that a table has to quote."""
    (tmp_path / "images").mkdir()
    name = 'ü, "x".png'
    (tmp_path / "images" / name).write_bytes((place / "images" / "0.png").read_bytes())
    words = arguments(place, tmp_path / "two", "--perceptual", "none")
    words[1] = str(tmp_path / "images")
    done = torchrun(["-m", "gmtool", "--", *words], tmp_path)
    assert done.returncode == 0, done.stderr
    words[2] = str(tmp_path / "one")
    assert execute(words) == 0
    for file in ("pairs.png", "worst.png", "images.csv", "reconstruction.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    with (tmp_path / "one" / "images.csv").open(encoding="utf-8") as file:
        assert [row["image"] for row in csv.DictReader(file)] == [name]


def test_a_tokenizer_that_decodes_by_itself(small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = str(small.flat / "images")
    more = ["--tokenizer", "pixels", "--image-size", "16", "--patch-size", "4", "--workers", "0", "--device", "cpu"]
    command = ["reconstruct", images, str(tmp_path / "out"), *more, "--features", "tokenizer", "--perceptual", "none"]
    assert execute([*command, "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    assert execute([*command, "--json"]) == 0
    assert (
        json.loads((tmp_path / "out" / "reconstruction.json").read_text())["details"]["qualities"]["psnr"]["mean"] > 20
    )
