"""gmtool import on weights of the public implementations, as their authors store them."""

import json
import os
import pickle
import shlex
import shutil
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import golden
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.mixture import GaussianMixture
from torch import Tensor

from gmtool.artifacts.gmm import open_gmm
from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.run import open_run
from gmtool.artifacts.safetensors_io import read_tensors
from gmtool.artifacts.samples import open_samples
from gmtool.cli.app import main
from gmtool.data.mode_statistics import ModeTable
from gmtool.mixture.gaussian_mixture import GaussianMixture as Mixture
from gmtool.nn.architecture import Conditions
from gmtool.nn.build import build_network
from gmtool.nn.network import Network
from gmtool.nn.spectrum import SpectrumMLP
from gmtool.stages.import_run.config import ImportConfig
from gmtool.stages.import_run.plan import prepare
from gmtool.stages.report.collection import collect
from gmtool.stages.report.provenance import trace
from gmtool.training.checkpoint import EMA, MODEL, find_checkpoint, load_weights

SHAPE = (16, 4, 4)
LABELS = "y_embedder.embedding_table.weight"


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 of 16 channels."""
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14, "image_size": 56}
    path = tmp_path_factory.mktemp("dino")
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder of 4 channels at half the side, which stores its weights as GMFlow's folder does."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vae")
    diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    ).save_pretrained(path, variant="bf16")
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the stat.pt of a network."""
    monkeypatch.chdir(tmp_path)
    draw = torch.Generator().manual_seed(0)
    statistics = {"mean": torch.randn(SHAPE, generator=draw), "var": torch.rand(SHAPE, generator=draw) + 0.5}
    torch.save(statistics, tmp_path / "stat.pt")
    return tmp_path


def save_checkpoint(path: Path, weights: Mapping[str, Tensor]) -> None:
    """As RAE's trainer does, with its optimizer, schedule and command line; the last step's weights are others."""
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    schedule.step()
    content = {
        "ema": dict(weights),
        "model": {name: tensor + 1 for name, tensor in weights.items()},
        "opt": optimizer.state_dict(),
        "scheduler": schedule.state_dict(),
        "train_steps": 7,
        "training_cfg": {"epochs": 80, "ema_decay": 0.9995},
        "args": Namespace(lr=1e-4),
    }
    torch.save(content, path)


def save_mixture(path: Path, modes: int, kind: str = "spherical", size: int = 256) -> GaussianMixture:
    """A mixture over normalised latents, as MM-FM writes it."""
    draw = np.random.default_rng(0)
    model = GaussianMixture(modes, covariance_type=kind)
    model.means_ = draw.normal(size=(modes, size))
    model.covariances_ = draw.uniform(0.1, 1, modes if kind == "spherical" else (modes, size))
    model.weights_ = draw.dirichlet(np.ones(modes))
    path.write_bytes(pickle.dumps({"model": model, "config": {"n_components": modes}}))
    return model


def imported(run: Path) -> Network:
    """The network of a run, with its averaged weights."""
    opened = open_run(run)
    network = build_network(opened.architecture, seed=1)
    load_weights(network, find_checkpoint(opened.checkpoints, None).path / EMA)
    return network.eval()


def velocity(network: Network, values: Mapping[str, Tensor], conditions: Conditions) -> Tensor:
    with torch.no_grad():
        output = network(values["x"], values["t"], conditions)
    assert isinstance(output, Tensor)
    return output


@pytest.mark.parametrize("name", ["ditdh", "ditdh_qknorm"])
@pytest.mark.parametrize("form", ["rae", "weights alone", "safetensors", "wrapped"])
def test_a_ditdh_gives_the_reference_s_velocity(place: Path, dino: Path, name: str, form: str) -> None:
    weights, values = load_file(golden.DATA / f"{name}.safetensors"), golden.arrays(name)
    file = place / ("model.safetensors" if form == "safetensors" else "model.pt")
    if form == "rae":
        save_checkpoint(file, weights)
    elif form == "safetensors":
        save_file(weights, file)
    else:
        prefix = "_orig_mod.module." if form == "wrapped" else ""
        torch.save({prefix + key: tensor for key, tensor in weights.items()}, file)
    assert main(["import", str(file), "run", "--tokenizer", str(dino)]) == 0
    network = imported(place / "run")
    torch.testing.assert_close(velocity(network, values, Conditions(values["y"])), values["out"], **golden.TOLERANCE)
    run = open_run(place / "run")
    assert (run.method.condition, run.method.source, len(run.classes)) == ("class", "gaussian", 10)
    checkpoint = find_checkpoint(run.checkpoints, None)
    assert checkpoint.step == (7 if form == "rae" else 0)
    if form == "rae":
        torch.testing.assert_close(read_tensors(checkpoint.path / MODEL)[LABELS], weights[LABELS] + 1)
    else:
        assert not (checkpoint.path / MODEL).exists()


def test_an_imported_run_samples_and_is_described(place: Path, dino: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(place / "model.pt", load_file(golden.DATA / "ditdh.safetensors"))
    assert main(["import", "model.pt", "--tokenizer", str(dino), "--time-shift", "6.93"]) == 0
    shown = capsys.readouterr().out
    assert "run: DiTDH on latents of 16 x 4 x 4, 10 classes, a Gaussian source" in shown
    assert "gmtool sample run --protocol rae --steps 50" in shown
    flags = ["--num", "5", "--classes", "3,7", "--protocol", "rae", "--steps", "4", "--guidance", "cfg"]
    assert main(["sample", "run", *flags, "--device", "cpu"]) == 0
    with open_latents(place / "samples/latents.h5") as latents:
        assert latents.labels.tolist() == [3, 7, 3, 7, 3]
        drawn = torch.from_numpy(latents.patches(slice(None))).float()
    statistics = torch.load(place / "stat.pt", weights_only=True)
    normalised = (drawn - statistics["mean"]) / (statistics["var"] + 1e-5).sqrt()
    assert float(normalised.abs().max()) < 50
    plan = json.loads((place / "samples/sampling.json").read_text())["details"]["plan"]
    assert (plan["steps"], plan["shift"], plan["scale"]) == (3, 6.93, 1.5)
    capsys.readouterr()
    assert main(["inspect", "run", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["stage"] == "import"
    assert {source["role"]: source["state"] for source in described["inputs"]} == dict.fromkeys(
        ("weights", "statistics"), "matches"
    )


@pytest.mark.slow
def test_pictures_and_a_score_with_a_decoder(
    place: Path, dino: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    sizes = {"encoder_hidden_size": 16, "decoder_hidden_size": 8, "decoder_intermediate_size": 16}
    layers = {"encoder_num_hidden_layers": 0, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    diffusers.AutoencoderRAE(**sizes, **layers, patch_size=16, encoder_input_size=56).save_pretrained("decoder")
    save_checkpoint(place / "model.pt", load_file(golden.DATA / "ditdh.safetensors"))
    assert main(["import", "model.pt", "--tokenizer", str(dino)]) == 0
    for samples, seed in (("samples", "0"), ("others", "1")):
        draw = ["sample", "run", samples, "--decoder", "decoder", "--seed", seed, "--num", "12", "--device", "cpu"]
        assert main([*draw, "--protocol", "rae", "--steps", "3"]) == 0
    assert open_samples(place / "samples").images().shape == (12, 64, 64, 3)
    evaluation = ["eval", "--reference", "others", "--features", "tokenizer", "--device", "cpu"]
    assert main(evaluation) == 0, capsys.readouterr().err
    assert "distance" in capsys.readouterr().out


@pytest.mark.parametrize("rows", [10, 11], ids=["no row for the hidden mode", "one"])
@pytest.mark.parametrize("kind", ["spherical", "diag"])
@pytest.mark.slow
def test_a_network_on_modes(place: Path, dino: Path, rows: int, kind: str) -> None:
    weights, values = load_file(golden.DATA / "ditdh.safetensors"), golden.arrays("ditdh")
    save_checkpoint(place / "mode.pt", weights | {LABELS: weights[LABELS][:rows]})
    model = save_mixture(place / "patches.pkl", 10, kind)
    cls = save_mixture(place / "cls.pkl", 10, "diag", size=16)
    flags = ["--gmm", "patches.pkl", "--cls-gmm", "cls.pkl", "--condition", "mode", "--tokenizer", str(dino)]
    assert main(["import", "mode.pt", *flags]) == 0
    run = open_run(place / "run")
    assert (run.method.condition, run.method.source, run.method.coupling) == ("mode", "gmm", "mode")
    known = values["y"] < 10
    output = velocity(imported(place / "run"), values, Conditions(modes=values["y"].clamp(max=9)))
    torch.testing.assert_close(output[known], values["out"][known], **golden.TOLERANCE)
    statistics = run.statistics()
    torch.testing.assert_close(statistics.mode_weights, torch.from_numpy(model.weights_).float()[None])
    with open_gmm(place / "run/gmm.h5") as gmm:
        np.testing.assert_allclose(gmm.cls_mean, cls.means_)
        np.testing.assert_allclose(gmm.weights, model.weights_)
        frame = ModeTable(gmm, statistics, torch.device("cpu"), whitened=False).at(torch.arange(10))
    np.testing.assert_allclose(frame.mean.flatten(1), model.means_, atol=1e-5, rtol=1e-5)
    std = np.broadcast_to(np.sqrt(model.covariances_).reshape(10, -1), (10, 256))
    np.testing.assert_allclose(frame.std.flatten(1), std, rtol=1e-5)
    assert main(["sample", "--num", "4", "--steps", "2", "--device", "cpu"]) == 0
    with open_latents(place / "samples/latents.h5") as latents:
        assert latents.shape == SHAPE
    # another network of the same mixture guides it
    assert main(["import", "mode.pt", "guide", *flags]) == 0
    guided = ["--guidance", "auto", "--guide", "guide", "--guidance-scale", "1.5"]
    assert main(["sample", "run", "guided", "--num", "4", "--steps", "2", "--device", "cpu", *guided]) == 0
    with open_latents(place / "guided/latents.h5") as same, open_latents(place / "samples/latents.h5") as plain:
        np.testing.assert_allclose(same.patches(slice(None)), plain.patches(slice(None)), atol=1e-2, rtol=1e-2)


@pytest.mark.slow
def test_a_mixture_in_patch_space_alone_assigns_no_image_to_a_mode(
    place: Path, dino: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What asks for assignments says what to do, and never to replace the run's own mixture."""
    weights = load_file(golden.DATA / "ditdh.safetensors")
    save_checkpoint(place / "mode.pt", weights | {LABELS: weights[LABELS][:10]})
    save_mixture(place / "spatial_gmm.pkl", 10)
    assert main(["import", "mode.pt", "--condition", "mode", "--tokenizer", str(dino)]) == 0
    (place / "images").mkdir()
    for index in range(2):
        Image.new("RGB", (64, 64), (index, 0, 0)).save(place / f"images/{index}.png")
    assert main(["encode", "images", "--tokenizer", str(dino), "--image-size", "64", "--device", "cpu"]) == 0
    for command, words in {
        "likelihood latents.h5 run": "holds no mixture over descriptors: import its run again with --cls-gmm",
        "distill run student --latents latents.h5": "other latents, not to latents.h5: use --data-free",
    }.items():
        capsys.readouterr()
        assert main([*command.split(), "--device", "cpu"]) == 2
        error = capsys.readouterr().err
        assert words in error and "internal" not in error


@pytest.mark.slow
def test_labels_that_a_network_does_not_use(place: Path, dino: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, values = load_file(golden.DATA / "ditdh.safetensors"), golden.arrays("ditdh")
    save_checkpoint(place / "uncond.pt", weights)
    save_mixture(place / "spatial_gmm_n10.pkl", 10)
    command = ["import", "uncond.pt", "--tokenizer", str(dino)]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "has 11 labels and comes with a mixture: specify the conditioning with --condition" in error
    assert main([*command, "--condition", "none"]) == 0
    assert "spatial_gmm_n10.pkl: found beside the checkpoint" in capsys.readouterr().out
    assert open_run(place / "run").method.source == "gmm"
    unused = velocity(imported(place / "run"), values, Conditions())
    # what the network gives without labels is what it gives with labels of zero
    assert main([*command, "silent", "--condition", "class"]) == 0
    silent = imported(place / "silent")
    silent.load_state_dict(silent.state_dict() | {LABELS: torch.zeros_like(weights[LABELS])})
    torch.testing.assert_close(unused, velocity(silent, values, Conditions(values["y"])))
    # one row is a constant that it does use
    save_checkpoint(place / "constant.pt", weights | {LABELS: weights[LABELS][3:4]})
    (place / "spatial_gmm_n10.pkl").unlink()
    assert main(["import", "constant.pt", "constant", "--tokenizer", str(dino)]) == 0
    of_three = velocity(imported(place / "constant"), values, Conditions())
    torch.testing.assert_close(of_three[values["y"] == 3], values["out"][values["y"] == 3], **golden.TOLERANCE)
    assert main(["sample", "constant", "--num", "2", "--steps", "2", "--device", "cpu"]) == 0


def save_gmflow(folder: Path, name: str, vae: Path | None = None) -> dict[str, Tensor]:
    """GMFlow's folder, with a spectrum network where there is an autoencoder; returns the latter's weights."""
    (folder / "transformer").mkdir(parents=True)
    shutil.copy(golden.DATA / f"{name}.json", folder / "transformer/config.json")
    shutil.copy(golden.DATA / f"{name}.safetensors", folder / "transformer/diffusion_pytorch_model.bf16.safetensors")
    if vae is None:
        return {}
    shutil.copytree(vae, folder / "vae")
    torch.manual_seed(2)
    spectrum = SpectrumMLP((4, 8, 8))
    state = {key: tensor + 0.1 * torch.randn_like(tensor) for key, tensor in spectrum.state_dict().items()}
    (folder / "spectrum_net").mkdir()
    save_file(state, folder / "spectrum_net/diffusion_pytorch_model.safetensors")
    names = {str(index): f"thing, synonym {index}" if index < 2 else f"kind{index}" for index in range(10)}
    (folder / "model_index.json").write_text(json.dumps({"id2label": names}))
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({"shift": 2.0}))
    return state


@pytest.mark.parametrize("name", ["gmdit", "gmdit_v2"])
def test_gmflow_s_folder(place: Path, vae: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    spectrum, values = save_gmflow(place / "gmflow", name, vae), golden.arrays(name)
    assert main(["import", "gmflow"]) == 0
    assert "GM-DiT on latents of 4 x 8 x 8, 10 classes, a Gaussian source" in capsys.readouterr().out
    network = imported(place / "run")
    with torch.no_grad():
        output = network(values["hidden_states"], values["timestep"] / 1000, Conditions(values["class_labels"]))
    assert isinstance(output, Mixture)
    torch.testing.assert_close(output.means, values["means"], **golden.TOLERANCE)
    torch.testing.assert_close(output.log_weights, values["logweights"], **golden.TOLERANCE)
    torch.testing.assert_close(output.variance, (2 * values["logstds"]).exp(), **golden.TOLERANCE)
    assert network.spectrum is not None
    for key, tensor in network.spectrum.state_dict().items():
        assert torch.equal(tensor, spectrum[key])
    run = open_run(place / "run")
    assert run.classes[:3] == ("thing 0", "thing 1", "kind2")
    assert (run.architecture.components, run.architecture.spectral, run.method.time_shift) == (4, 4, 2.0)
    assert run.tokenizer().settings["image_size"] == 16


def test_gmflow_s_folder_gives_pictures_with_a_score(
    place: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_gmflow(place / "gmflow", "gmdit", vae)
    assert main(["import", "gmflow"]) == 0
    draw = ["sample", "--steps", "4", "--num", "12", "--device", "cpu", "--guidance", "prob", "--classes", "kind2,5"]
    assert main([*draw, "--solver", "gm-sde", "--spectral"]) == 0
    assert open_samples(place / "samples").images().shape == (12, 16, 16, 3)
    assert main(["sample", "run", "others", *draw[1:]]) == 0
    evaluation = ["eval", "samples", "--reference", "others", "--features", "tokenizer", "--device", "cpu"]
    assert main(evaluation) == 0, capsys.readouterr().err
    assert "distance" in capsys.readouterr().out


def test_a_fixed_deviation_and_no_spectrum(place: Path, vae: Path, tmp_path: Path) -> None:
    # 16 channels: the latents of another autoencoder
    diffusers = pytest.importorskip("diffusers")
    diffusers.AutoencoderKL(latent_channels=16, block_out_channels=(8,), norm_num_groups=4).save_pretrained("wide")
    save_gmflow(place / "gmflow", "gmdit_p1")
    assert main(["import", "gmflow", "--tokenizer", "wide"]) == 0
    run, values = open_run(place / "run"), golden.arrays("gmdit_p1")
    assert run.architecture.constant_std == pytest.approx(np.exp(-0.5))
    assert run.architecture.spectral == 0 and run.classes == tuple(map(str, range(10)))
    with torch.no_grad():
        output = imported(place / "run")(
            values["hidden_states"], values["timestep"] / 1000, Conditions(values["class_labels"])
        )
    torch.testing.assert_close(output.means, values["means"], **golden.TOLERANCE)


class Harm:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch harm",)


@pytest.mark.slow
def test_what_cannot_be_imported_is_one_line_and_leaves_nothing(
    place: Path, dino: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(golden.DATA / "ditdh.safetensors")
    save_checkpoint(place / "model.pt", weights)
    few = {name: tensor for name, tensor in weights.items() if name != "blocks.2.attn.proj.bias"}
    for name, content in {
        "few": few,
        "many": weights | {"teacher.weight": torch.ones(2)},
        "unfit": weights | {"final_layer.linear.bias": torch.ones(3)},
        "other": {"conv1.weight": torch.ones(2, 3, 3, 3)},
        "empty": {},
        "harm": {"ema": Harm()},
        "list": [1, 2],
    }.items():
        torch.save(content, place / f"{name}.pt")
    Path("text.pt").write_text("no checkpoint")
    torch.save({"mean": torch.zeros(16, 2, 2)}, place / "small.pt")
    torch.save({"something": torch.zeros(3)}, place / "nothing.pt")
    save_mixture(place / "patches.pkl", 4)
    save_mixture(place / "three.pkl", 3)
    save_mixture(place / "narrow.pkl", 4, size=200)
    Path("text.pkl").write_text("no mixture")
    Path("bad.pkl").write_bytes(pickle.dumps({"model": Harm()}))
    save_gmflow(place / "gmflow", "gmdit", vae)
    (place / "nothing-here").mkdir()
    (place / "taken").mkdir()
    (place / "taken/file").touch()
    before = sorted(place.iterdir())
    tokenizer = ["--tokenizer", str(dino)]
    for arguments, words in [
        (["missing.pt"], "missing.pt does not exist"),
        (["nothing-here"], "neither transformer/ nor a checkpoint"),
        (["."], "checkpoints (empty.pt, ...): name the .pt file"),
        (
            ["few.pt", *tokenizer],
            "few.pt is damaged, or is not a checkpoint of a DiTDH: it lacks the weight blocks.2.",
        ),
        (["many.pt", *tokenizer], "it has the weight teacher.weight, which"),
        (["unfit.pt", *tokenizer], "the weight final_layer.linear.bias is of 3, and not of 16"),
        (
            ["other.pt", *tokenizer],
            "is not a checkpoint of a DiTDH: it lacks 'x_embedder.proj.weight'",
        ),
        (["empty.pt"], "empty.pt is damaged, or is not a checkpoint of PyTorch: it holds no weights"),
        (["list.pt"], "list.pt is damaged, or is not a checkpoint of PyTorch: it holds no weights"),
        (["harm.pt"], "harm.pt asks for posix.system, which is not data: it is not read"),
        (["text.pt"], "text.pt is damaged, or is not a checkpoint of PyTorch: it is no archive"),
        (["model.pt", "--statistics", "gone.pt"], "gone.pt does not exist: give the stat.pt"),
        (
            ["model.pt", "--statistics", "small.pt"],
            "mean is of 16 x 2 x 2, and the network's latents are of 16 x 4 x 4",
        ),
        (["model.pt", "--statistics", "nothing.pt"], "holds neither mean nor var"),
        (["model.pt", "--condition", "mode"], "11 labels; give the mixture by --gmm"),
        (["model.pt", "--condition", "mode", "--gmm", "patches.pkl"], "11 labels; the mixture has 4 modes"),
        (["model.pt", "--gmm", "patches.pkl"], "--condition"),
        (["model.pt", "--cls-gmm", "patches.pkl"], "of 4 modes, and there is none in patch space: give it by --gmm"),
        (["model.pt", "--gmm", "patches.pkl", "--cls-gmm", "three.pkl"], "of 3 modes, and there is one of 4 modes"),
        (["model.pt", "--gmm", "narrow.pkl", "--condition", "class"], "a mixture over 200 numbers"),
        (
            ["model.pt", "--gmm", "patches.pkl", "--cls-gmm", "patches.pkl", "--condition", "class", *tokenizer],
            "a mixture over 256 numbers, and the encoder's descriptors have 16: give the one over [CLS] tokens",
        ),
        (["model.pt", "--gmm", "text.pkl"], "text.pkl is damaged, or is not a pickle of arrays"),
        (["model.pt", "--gmm", "bad.pkl"], "bad.pkl asks for posix.system, which is not data"),
        (["model.pt", "taken"], "taken exists: choose another folder"),
        (["model.pt", "--tokenizer", str(vae)], "is no encoder: give dinov2, dinov3, siglip2, mae"),
        (["gmflow", "--tokenizer", str(dino)], "no AutoencoderKL"),
        (["gmflow", "--condition", "class"], "--condition is for a DiTDH"),
        (["model.pt", "--time-shift", "0"], "--time-shift must be at least 0.001"),
    ]:
        assert main(["import", *arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, (arguments, error)
        assert sorted(place.iterdir()) == before, arguments


def test_a_dry_run_says_what_would_be_and_writes_nothing(
    place: Path, dino: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(golden.DATA / "ditdh.safetensors")
    save_checkpoint(place / "mode.pt", weights | {LABELS: weights[LABELS][:10]})
    save_mixture(place / "spatial_gmm.pkl", 10)
    before = sorted(place.iterdir())
    command = ["import", "mode.pt", "--condition", "mode", "--tokenizer", str(dino)]
    assert main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert sorted(place.iterdir()) == before
    assert "import DiTDH on latents of 16 x 4 x 4, 10 modes, a source of 10 modes" in shown
    assert "--gmm (auto)" in shown and "--tokenizer (auto)" not in shown
    for name in ("mode.pt", "stat.pt", "spatial_gmm.pkl", "run/checkpoints", "run/gmm.h5"):
        assert name in shown, name
    assert main(command) == 0
    run = place / "run"
    plan = prepare("mode.pt", place / "again", ImportConfig(condition="mode", tokenizer=str(dino)))
    assert f"{plan.network.parameters:,}" in shown
    written = {output.path.name: output.bytes for output in plan.forecast().writes}
    weights_of = (run / "checkpoints").rglob("*.safetensors")
    sizes = {"checkpoints": sum(file.stat().st_size for file in weights_of), "gmm.h5": (run / "gmm.h5").stat().st_size}
    for name, size in sizes.items():
        # headers and rounding are small beside the files of real networks alone
        assert size == pytest.approx(written[name], rel=0.05, abs=2**16), name


def test_its_command_can_be_typed_again(place: Path, dino: Path) -> None:
    (place / "my weights").mkdir()
    save_checkpoint(place / "my weights/mode.pt", load_file(golden.DATA / "ditdh.safetensors"))
    shutil.copy("stat.pt", "my weights")
    save_mixture(place / "patches.pkl", 10)
    typed = ["import", "my weights/mode.pt", "run", "--gmm", "patches.pkl", "--condition", "mode"]
    assert main([*typed, "--tokenizer", str(dino)]) == 0
    nodes = {node.name: node for node in trace(collect([place / "run"])).nodes.values()}
    words = shlex.split(nodes["run"].command)
    assert words == ["gmtool", *typed, "--tokenizer", str(dino)]
    assert main([*("again" if word == "run" else word for word in words[1:]), "--dry-run"]) == 0
    assert nodes["gmm.h5"].command == ""
    with open_gmm(place / "run/gmm.h5") as gmm:
        assert gmm.manifest.config["cls_gmm"] is None
