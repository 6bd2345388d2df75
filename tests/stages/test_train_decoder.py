"""``gmtool train-decoder`` as a user runs it."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import DATA
from PIL import Image
from safetensors.torch import load_file
from user import Stop, torchrun

from gmtool.artifacts.files import PART_SUFFIX
from gmtool.cli.app import execute, main
from gmtool.errors import UserError
from gmtool.nn.compile import compile_network
from gmtool.progress import Progress
from gmtool.settings import make
from gmtool.stages.train_decoder import run as stage
from gmtool.stages.train_decoder.config import TrainDecoderConfig
from gmtool.stages.train_decoder.run import train_decoder
from gmtool.tokenizers.build import build_tokenizer
from gmtool.tokenizers.encoder import DINOV2

diffusers = pytest.importorskip("diffusers")

CPU = torch.device("cpu")
ENCODER = str(DATA / "rae_encoder")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, and the ViT of a discriminator."""
    from transformers import ViTConfig, ViTModel

    root = tmp_path_factory.mktemp("decoder")
    (root / "images").mkdir()
    draw = np.random.default_rng(0)
    for number in range(12):
        grid = draw.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(grid).resize((40, 36), Image.Resampling.BICUBIC).save(root / "images" / f"{number}.png")
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTModel(config).save_pretrained(root / "vit")
    return root


def arguments(place: Path, folder: Path, *more: str) -> list[str]:
    """Seven steps through all phases."""
    return [
        *("train-decoder", str(place / "images"), str(folder), "--tokenizer", ENCODER, "--image-size", "32"),
        *("--perceptual", "none", "--discriminator-weights", str(place / "vit"), "--size", "tiny", "--device", "cpu"),
        *("--steps", "7", "--discriminator-from", "2", "--adversarial-from", "4", "--save-every", "3"),
        *("--batch-size", "4", "--warmup", "2", "--preview-every", "7", "--eval-every", "7", "--workers", "0", *more),
    ]


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    assert execute(arguments(place, place / "trained")) == 0
    return place / "trained"


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_it_goes_through_all_phases(trained: Path) -> None:
    steps, score = lines(trained)[:7], lines(trained)[7]
    assert [("loss_d" in step, "adversarial" in step) for step in steps] == [
        *[(False, False)] * 2,
        *[(True, False)] * 2,
        *[(True, True)] * 3,
    ]
    assert all(np.isfinite(list(step.values())).all() for step in steps)
    assert score["step"] == 7 and {"held_out_psnr", "held_out_ssim", "held_out_l1_8bit"} < set(score)
    with Image.open(trained / "previews" / "step-00000007.png") as pairs:
        assert pairs.width == 64  # an image beside its reconstruction; one is held out


def test_diffusers_and_gmtool_read_the_folder(trained: Path) -> None:
    latents = torch.randn(2, 32, 2, 2, generator=torch.Generator().manual_seed(0))
    theirs = diffusers.AutoencoderRAE.from_pretrained(trained).eval()
    spec = DINOV2.spec(ENCODER, 32)
    ours = build_tokenizer(spec, CPU, decoder=str(trained)).decode(latents)
    with torch.no_grad():
        expected = (255 * theirs.decode(latents / (1 + 1e-5)).sample).round().clamp(0, 255).to(torch.uint8)
    assert (ours.int() - expected.int()).abs().max() <= 1
    assert theirs.encode(torch.rand(1, 3, 28, 28)).latent.isnan().all()  # no encoder, rather than a wrong one
    average = load_file(trained / "checkpoints" / "step-00000007" / "ema.safetensors")
    weights = load_file(trained / "diffusion_pytorch_model.safetensors")
    assert torch.equal(weights["decoder.decoder_pred.weight"], average["decoder.decoder_pred.weight"])


def config_of(place: Path, *more: str) -> TrainDecoderConfig:
    """The settings that `arguments` make."""
    given = arguments(place, place, *more)[3:]
    values: dict = dict(zip(given[::2], given[1::2], strict=True))
    kinds: dict[str, Callable] = dict.fromkeys(("steps", "save_every", "batch_size", "warmup", "workers"), int)
    kinds |= dict.fromkeys(("preview_every", "eval_every", "image_size"), int)
    named = {key[2:].replace("-", "_"): value for key, value in values.items()}
    return make(TrainDecoderConfig, {name: kinds.get(name, str)(value) for name, value in named.items()})


@pytest.mark.parametrize("stop", [1, 4, 7])
@pytest.mark.slow
def test_a_resumed_run_leaves_the_same_bytes(place: Path, trained: Path, tmp_path: Path, stop: int) -> None:
    """Interrupted before the first checkpoint, and after one in either adversarial phase."""
    folder, config = tmp_path / "resumed", config_of(place)
    with pytest.raises(KeyboardInterrupt):
        train_decoder(place / "images", folder, config, Stop(stop))
    for name in ("", "previews/", "checkpoints/"):  # what a kill leaves of a file that was being written
        (folder / name).mkdir(exist_ok=True)
        (folder / f"{name}.config.json.0{PART_SUFFIX}").write_text("half")
    assert train_decoder(place / "images", folder, config, Progress()).resumed_from == stop - 1
    assert not list(folder.rglob(f".*{PART_SUFFIX}"))
    names = [f"checkpoints/step-00000007/{path.name}" for path in (trained / "checkpoints/step-00000007").iterdir()]
    for name in ("metrics.jsonl", "config.json", "diffusion_pytorch_model.safetensors", "encoder.json", *names):
        assert (folder / name).read_bytes() == (trained / name).read_bytes(), name


def test_a_decoder_is_trained_further(place: Path, trained: Path, tmp_path: Path) -> None:
    more = arguments(place, tmp_path / "further", "--init", str(trained), "--adversarial", "none", "--steps", "1")
    del more[more.index("--size") : more.index("--size") + 2]
    del more[more.index("--discriminator-weights") : more.index("--discriminator-weights") + 2]
    assert execute([*more, "--lr", "0"]) == 0
    before, after = (load_file(run / "diffusion_pytorch_model.safetensors") for run in (trained, tmp_path / "further"))
    assert before.keys() == after.keys()
    for name, values in before.items():
        torch.testing.assert_close(after[name], values, atol=1e-7, rtol=1e-6, equal_nan=name.startswith("encoder."))


@pytest.mark.slow
def test_compiling_changes_a_run_by_rounding_alone(
    place: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through all phases, the activations of its blocks computed anew."""
    monkeypatch.setattr(stage, "compile_network", partial(compile_network, backend="eager"))
    torch.compiler.reset()
    assert execute(arguments(place, tmp_path / "compiled", "--compile", "--checkpoint-activations")) == 0
    for one, two in zip(lines(trained)[:7], lines(tmp_path / "compiled")[:7], strict=True):
        assert (two["l1"], two["grad_norm"]) == pytest.approx((one["l1"], one["grad_norm"]), rel=1e-3)
    plain, compiled = (
        load_file(folder / "checkpoints/step-00000007/model.safetensors") for folder in (trained, tmp_path / "compiled")
    )
    assert plain.keys() == compiled.keys()


def test_inspect(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["inspect", str(trained), "--verify"]) == 0
    shown = capsys.readouterr().out
    assert "is a trained decoder, made by gmtool train-decoder" in shown and "6, 7" in shown
    assert "matches" in shown and "all checksums match" in shown


@pytest.mark.slow
def test_damaged_weights_are_written_again(
    place: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(trained, tmp_path / "damaged")
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"none")
    with pytest.raises(UserError, match="run `gmtool train-decoder` again: it writes those of the last checkpoint"):
        execute(["inspect", str(folder), "--verify"])
    assert execute(arguments(place, folder)) == 0
    assert weights.read_bytes() == (trained / weights.name).read_bytes()
    assert "has all its 7 steps; its schedule follows --steps" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute([*arguments(place, tmp_path / "none"), "--dry-run", "--price-per-hour", "2"]) == 0
    shown = capsys.readouterr().out
    assert "parameters" in shown and "adversarial loss from step" in shown and "memory" in shown
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--resize", "20"], "--resize 20 is smaller than the crop of --image-size 32"),
        (["--image-size", "64"], r"cannot be used \(its 40 x 36 pixels are fewer than the 64 of a crop; --upscale"),
        (["--image-size", "33"], "--image-size 33 is no multiple of the 2 tokens"),
        (["--adversarial-from", "1"], "--adversarial-from 1 lies before --discriminator-from 2"),
        (["--adversarial-from", "half"], "--adversarial-from is a step or a percentage"),
        (["--init", "nowhere/x"], "--init gives the decoder's size: remove --size"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--optimizer", "muon"], "--optimizer muon"),
        (["--perceptual", "lpips", "--lpips-weights", "nowhere.pth"], r"--lpips-weights nowhere\.pth is not a file"),
        (["--discriminator-weights", "./nowhere"], "--discriminator-weights ./nowhere is no file or folder"),
        (["--hold-out", "12"], "holds 12 images, too few to hold 12 out"),
        (["--layers", "9"], "--layers 9"),
    ],
)
def test_bad_input_is_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    assert main(arguments(place, tmp_path / "none", *more)) == 2
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown.startswith("gmtool: error: ")
    with pytest.raises(UserError, match=words):
        raise UserError(shown)
    assert not (tmp_path / "none").exists()


def test_a_decoder_to_train_further_is_named_by_its_flag(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "odd.pt"
    torch.save({"decoder_embed.weight": torch.zeros(100, 4), "decoder_pos_embed": torch.zeros(1, 5, 100)}, odd)
    given = arguments(place, tmp_path / "none")
    del given[given.index("--size") : given.index("--size") + 2]
    for decoder, words in (("./nowhere", " ./nowhere"), (ENCODER, f" {ENCODER} "), (str(odd), ": a width of 100")):
        assert main([*given, "--init", decoder]) == 2
        assert f"gmtool: error: --init{words}" in capsys.readouterr().err


def test_another_kind_of_artifact_is_named(trained: Path, tmp_path: Path) -> None:
    for words in (["sample", str(trained), str(tmp_path / "x")], ["distill", str(trained)], ["sweep", str(trained)]):
        with pytest.raises(
            UserError, match="trained is a trained decoder, not a training run: give what `gmtool train`"
        ):
            execute(words)


def test_few_images_are_told_what_to_hold_out(place: Path, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    for number in range(4):
        shutil.copy(place / "images" / f"{number}.png", tmp_path / "few")
    command = arguments(place, tmp_path / "none")
    command[1] = str(tmp_path / "few")
    with pytest.raises(UserError, match="holds 4 images, too few to hold a tenth out: use --hold-out 1"):
        execute(command)


def test_pixels_need_no_decoder(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--tokenizer pixels decodes its latents by itself"):
        execute(["train-decoder", str(place / "images"), str(tmp_path / "x"), "--tokenizer", "pixels"])


def test_pictures_among_the_images(place: Path) -> None:
    """A resumed run would be told that its images had changed."""
    for folder, command in (
        ("decoder", arguments(place, place / "images" / "decoder")),
        ("seen", ["reconstruct", str(place / "images"), str(place / "images" / "seen"), "--tokenizer", "pixels"]),
    ):
        with pytest.raises(UserError, match=f"{folder} lies in .*images, and its pictures"):
            execute(command)
        assert not (place / "images" / folder).exists()


@pytest.mark.slow
def test_what_is_there_is_not_replaced(place: Path, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="exists and is not a decoder"):
        execute(arguments(place, tmp_path / "mine"))
    shutil.copytree(trained, tmp_path / "other")
    with pytest.raises(UserError, match=r"was begun with --noise-tau 0\.8, not --noise-tau 0\.5"):
        execute(arguments(place, tmp_path / "other", "--noise-tau", "0.5"))
    (place / "images" / "new.png").write_bytes((place / "images" / "0.png").read_bytes())
    try:
        with pytest.raises(UserError, match="was trained with other images: choose"):
            execute(arguments(place, tmp_path / "other", "--hold-out", "1"))
    finally:
        (place / "images" / "new.png").unlink()


@pytest.mark.slow
def test_two_processes_equal_one(place: Path, trained: Path, tmp_path: Path) -> None:
    done = torchrun(["-m", "gmtool", "--", *arguments(place, tmp_path / "two")], tmp_path)
    assert done.returncode == 0, done.stderr
    for here, there in zip(lines(trained), lines(tmp_path / "two"), strict=True):
        # fake images are rounded to 8 bits: once weights differ in a last digit, a level between two may come out as
        # either (without the rounding all seven steps agree, the norm to 4e-5)
        if here["step"] > 4:
            for name, tolerance in {"loss_d": 1e-3, "logits_fake": 1e-3, "grad_norm_d": 0.05}.items():
                assert there.pop(name, 0.0) == pytest.approx(here.pop(name, 0.0), rel=tolerance)
        assert there == pytest.approx(here, rel=1e-5, abs=1e-5)
    for name, atol in (("model", 1e-4), ("ema", 1e-4), ("discriminator", 1e-3)):
        one, two = (
            load_file(run / f"checkpoints/step-00000007/{name}.safetensors") for run in (trained, tmp_path / "two")
        )
        for key, values in one.items():
            torch.testing.assert_close(two[key], values, rtol=1e-3, atol=atol, msg=lambda text, key=key: key + text)
