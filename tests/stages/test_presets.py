"""Presets: those that come with gmtool, and what a user's own may get wrong."""

import re
from pathlib import Path
from typing import Literal

import pytest
import typer
from small import Small

from gmtool.artifacts.method_record import MethodRecord
from gmtool.cli.app import app, main
from gmtool.errors import UserError
from gmtool.reconstruction.settings import phases
from gmtool.sampling.plan import make_plan
from gmtool.settings import expect_type, settings_of
from gmtool.stages.assumed import assumed_latents
from gmtool.stages.fit_gmm.config import FitGmmConfig
from gmtool.stages.presets import FOLDER, STAGES, Preset, load_preset, preset_names, tomllib
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.forecast import facts_of_preset
from gmtool.stages.train.plan import DataFacts, plan_training

PUBLISHED = (
    *("gmflow-imagenet256", "mm-fm-gaussian-imagenet256", "mm-fm-imagenet256", "mm-fm-mode-imagenet256"),
    *("quickstart", "rae-imagenet256", "rae-imagenet512", "union-imagenet256"),
)
SWEEPS = ("sweep-guidance-gmflow", "sweep-steps-mm-fm")
DECODERS = ("rae-decoder-imagenet256",)


def test_the_presets_that_come_with_gmtool() -> None:
    assert preset_names() == tuple(sorted(PUBLISHED + DECODERS + SWEEPS))
    for name in PUBLISHED + DECODERS + SWEEPS:
        preset = load_preset(name)
        assert preset.source and preset.expect
        assert set(preset.settings) <= set(STAGES)


def test_presets_are_installed_with_the_package() -> None:
    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())
    assert "presets/*.toml" in project["tool"]["setuptools"]["package-data"]["gmtool"]
    assert FOLDER.name == "presets" and FOLDER.parent.name == "gmtool"


def test_the_recipes_are_the_published_ones() -> None:
    gmflow: TrainConfig = load_preset("gmflow-imagenet256").config("train")
    assert (gmflow.method.objective, gmflow.method.transition_ratio) == ("gm-kl", 0.5)
    assert (gmflow.network.model, gmflow.network.patch_size, gmflow.network.components) == ("XL", 2, 8)
    assert (gmflow.loop.batch_size, gmflow.loop.steps) == (4096, 200_000)
    assert (gmflow.schedule.lr, gmflow.schedule.warmup) == (2e-4, 1000)
    sampling = load_preset("gmflow-imagenet256").of("sample")
    assert [sampling[name] for name in ("solver", "order", "steps", "substeps")] == ["gm-ode", 2, 8, 16]
    mm_fm: TrainConfig = load_preset("mm-fm-imagenet256").config("train")
    assert (mm_fm.network.model, mm_fm.method.objective, mm_fm.method.focal) == ("DH-XL", "mm-fm", 2.0)
    assert (mm_fm.loop.batch_size, mm_fm.loop.steps) == (1024, 100_000)
    assert load_preset("mm-fm-imagenet256").config("fit-gmm").modes == 8192
    assert load_preset("mm-fm-mode-imagenet256").config("train").method.condition == "mode"
    rae: TrainConfig = load_preset("rae-imagenet256").config("train")
    assert (rae.method.objective, rae.method.condition) == ("fm", "class")
    assert rae.method.time_distribution == "logit-normal"


def facts_of(preset: Preset) -> DataFacts:
    """What a preset says of latents that are not there."""
    return facts_of_preset(preset, assumed_latents(preset.config("encode"), Path("latents.h5")))


def test_512_pixels_are_the_same_recipe_on_four_times_the_tokens() -> None:
    large, small = load_preset("rae-imagenet512"), load_preset("rae-imagenet256")
    differ = {name for name, value in large.of("train").items() if small.of("train").get(name) != value}
    assert differ == {"steps", "time_distribution"}
    facts = facts_of(large)
    assert facts.shape == (768, 32, 32)
    plan = plan_training(large.config("train"), facts, gpu=True)
    assert plan.method.time_shift == pytest.approx((768 * 32 * 32 / 4096) ** 0.5) == pytest.approx(13.86, abs=0.01)


def test_what_a_preset_leaves_open_is_as_its_command_has_it() -> None:
    tables = {"encode": {"tokenizer": "sd-vae"}, "fit-gmm": {}}
    assert facts_of(Preset("some", "", "", tables)).modes == FitGmmConfig().modes
    assert facts_of(Preset("some", "", "", {"encode": tables["encode"]})).modes == 0


@pytest.mark.parametrize("name", ["mm-fm-imagenet256", "mm-fm-mode-imagenet256"])
def test_mm_fm_couples_softly_with_moments_of_hard_assignment(name: str) -> None:
    config: FitGmmConfig = load_preset(name).config("fit-gmm")
    assert (config.assignment, config.patch_assignment, config.patches.mirror) == ("soft", "hard", False)
    assert load_preset(name).of("encode")["flip"] == "both"  # else nothing would be mirrored


def test_the_decoders_recipe_is_the_published_one() -> None:
    """16 epochs of 2502 steps: the discriminator from epoch 6, its loss from epoch 8."""
    config = load_preset("rae-decoder-imagenet256").config("train-decoder")
    starts = phases(config.losses, config.adversarial, config.loop.steps)
    assert config.loop.steps == 16 * (1_281_167 // config.loop.batch_size)
    assert (starts.perceptual, starts.discriminator, starts.adversarial) == (0, 6 * 2502, 8 * 2502)
    schedule = config.schedule.resolve(1.0, config.loop.steps)
    both = (schedule, config.adversarial.schedule(schedule))
    middle = (2502 + 40_032) // 2
    for run in both:
        rates = [run.at(step) for step in (0, 1250, 2502, middle, 40_031)]
        assert rates == pytest.approx([2e-4 / 2502, 1e-4, 2e-4, 1.1e-4, 2e-5], rel=1e-3)
    assert (config.crops.resize, config.tokenizer.image_size, config.decoder.noise_tau) == (384, 256, 0.8)
    assert (config.losses.perceptual_weight, config.adversarial.adversarial_weight) == (1.0, 0.75)
    assert (config.optimizer.betas, config.optimizer.weight_decay, config.optimizer.clip) == ((0.9, 0.95), 0.0, 0.0)
    assert config.averages.names == ("0.9978",)


def test_mm_fm_s_baseline_differs_in_the_source_alone() -> None:
    ours, baseline = (load_preset(name).of("train") for name in ("mm-fm-imagenet256", "mm-fm-gaussian-imagenet256"))
    assert {name for name, value in ours.items() if baseline.get(name) != value} == {"objective", "focal"}
    assert (baseline["objective"], baseline["source"]) == ("fm", "gaussian")
    assert load_preset("mm-fm-gaussian-imagenet256").of("sample") == load_preset("mm-fm-imagenet256").of("sample")


def test_gmflow_in_our_units() -> None:
    """Its loss is 8 times ours: a sum over 4 channels, times 2. Its average has a half-life of 30 million images."""
    gmflow = load_preset("gmflow-imagenet256").of("train")
    assert gmflow["clip"] == 10 / 8
    assert gmflow["spectral_weight"] == 1 / 8
    assert (gmflow["ema"], gmflow["ema_images"], gmflow["clip_from"]) == ([], [30_000_000], 1000)
    assert (gmflow["optimizer"], load_preset("gmflow-imagenet256").of("encode")["flip"]) == ("adamw8bit", "random")


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("mm-fm")])
def test_mm_fms_average_changes_at_epoch_20(name: str) -> None:
    averages = load_preset(name).config("train").averages
    assert averages.names == ("0.999",) and averages.decay_knots == ((25_000, 0.9995),)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "imagenet" in name])
def test_large_networks_are_compiled(name: str) -> None:
    preset = load_preset(name)
    assert preset.config("train").compute.compile and preset.config("sample").compile


def test_the_learning_rates_are_the_published_ones() -> None:
    rates = {0: 4e-4, 24_999: 4e-4, 25_000: 2e-4, 50_000: 2e-4, 525_000: 1.1e-4, 1_000_000: 2e-5}
    for name in ("mm-fm-imagenet256", "mm-fm-mode-imagenet256", "mm-fm-gaussian-imagenet256"):
        config: TrainConfig = load_preset(name).config("train")
        schedule = config.schedule.resolve(1.0, config.loop.steps)
        assert {step: schedule.at(step) for step in rates} == pytest.approx(rates)
    config = load_preset("rae-imagenet256").config("train")
    schedule = config.schedule.resolve(1.0, config.loop.steps)
    assert [schedule.at(step) for step in (0, 50_000, 525_000)] == pytest.approx([2e-4, 2e-4, 1.1e-4])


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "quickstart"])
def test_a_presets_sampler_suits_its_run(name: str) -> None:
    preset = load_preset(name)
    train, sample = preset.config("train"), preset.config("sample")
    source = "gmm" if train.method.wants_mixture else "gaussian"
    method = MethodRecord(
        objective="fm" if train.method.objective == "mm-fm" else train.method.objective,
        source=source,
        coupling="mode" if source == "gmm" else "independent",
        condition=train.method.condition,
        mode_mean=False,
        transition_ratio=0.5,
        time_distribution="logit-normal",
        time_shift=1.0,
        dropout=0.1,
    )
    make_plan(sample.sampling, method, train.network.spectral, seed=0)  # raises what a user would see


def test_commands_that_take_a_preset_have_a_table_in_it() -> None:
    """But `bench`, which measures a preset as a whole."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    takers = {name for name, command in commands.items() if any("--preset" in option.opts for option in command.params)}
    assert takers - {"bench"} == set(STAGES)


def test_every_type_of_setting_can_be_checked() -> None:
    """A default is a value of its own type."""
    for config_class in STAGES.values():
        for name, setting in settings_of(config_class).items():
            default = setting.of(config_class())
            if default is not None:
                expect_type(setting.kind, default, name)
            with pytest.raises(UserError, match="must be"):
                expect_type(setting.kind, {"a": 1}, name)


@pytest.mark.parametrize(
    ("kind", "good", "bad", "words"),
    [
        (tuple[float, ...], [0.9, 1], [0.9, "x"], "must be a list of numbers, not"),
        (tuple[float, ...], [], 0.9, "must be a list of numbers, not 0.9"),
        (tuple[int, float] | None, [1, 0.5], [1.5, 0.5], "must be a list of 2 numbers, not"),
        (tuple[int, float], [1, 2], [1, 2, 3], "must be a list of 2 numbers, not"),
        (int | None, 3, "3", "must be a whole number, not '3'"),
        (Literal["a", "b"] | None, "b", ["b"], "must be one of a, b, not"),
    ],
)
def test_types_of_values_in_files(kind: object, good: object, bad: object, words: str) -> None:
    expect_type(kind, good, "it")
    with pytest.raises(UserError, match=re.escape(words)):
        expect_type(kind, bad, "it")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[train]\nlearning-rate = 1", "[train] has no setting 'learning-rate'"),
        ("[train]\nbatch_size = 8", "[train] has no setting 'batch_size': did you mean batch-size"),
        ("[trian]\nlr = 1", "'trian' is not known: did you mean train or train-decoder?"),
        ("lr = 1e-4", "'lr' is not known; there are distill, encode"),
        ("train = 1", "train is the table of a command: write [train]"),
        ("source = 3", "source must be a string, not 3"),
        ('[train]\nsteps = "many"', "steps of [train] must be a whole number, not 'many'"),
        ("[train]\nsteps = 2.5", "steps of [train] must be a whole number, not 2.5"),
        ("[train]\nsteps = true", "steps of [train] must be a whole number, not True"),
        ("[train]\nlr = true", "lr of [train] must be a number, not True"),
        ("[encode]\nskip-bad = 1", "skip-bad of [encode] must be true or false, not 1"),
        ('[train]\nobjective = "gan"', "objective of [train] must be one of fm, gm-kl, mm-fm, not 'gan'"),
        ("[train]\ngmm = 7", "gmm of [train] must be a string, not 7"),
        ("[train]\nsteps = 0", "[train]: --steps must be at least 1, not 0"),
        ('[train]\nobjective = "mm-fm"\nsource = "gaussian"', "[train]: --objective mm-fm starts from"),
        ("[train\n", "is not TOML"),
        ("[train]\nsteps = " + "9" * 5000, "is not TOML"),
        ("[train]\nema = " + "[" * 5000 + "]" * 5000, "is not TOML"),
        ("[train]\nsteps = 1" + "0" * 30, "[train]: --steps must be below 2^63"),
        ("[train]\nlr = nan", "[train]: --lr must be a finite number, not nan"),
        ("[train]\nlr = 1e999", "[train]: --lr must be a finite number, not inf"),
        ("[train]\nema = [0.9, inf]", "[train]: --ema must be a finite number, not inf"),
        ("[train]\nema = [[0.9]]", "ema of [train] must be a list of numbers, not [[0.9]]"),
        ("[train]\nlr = 2026-01-01", "lr of [train] must be a number, not datetime.date(2026, 1, 1)"),
        ("[train]\nlr = {rate = 1}", "lr of [train] must be a number, not {'rate': 1}"),
        ("[[train]]\nlr = 1", "train is the table of a command: write [train]"),
        ("[train.adamw]\nlr = 1", "[train] has no setting 'adamw'"),
        ("source = 07:32:00", "source must be a string, not datetime.time(7, 32)"),
        ("[train]\nlr = 1\x00", "is not TOML"),
    ],
)
def test_a_preset_that_is_wrong(tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    assert main(["train", "--preset", str(file)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("gmtool: error: ") and shown.count("\n") == 1
    assert str(file) in shown and words in shown


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("quickstrat", "--preset quickstrat is neither a preset nor a .toml file: did you mean quickstart?"),
        ("mm-fm", "or mm-fm-imagenet256?"),
        ("xyz", "; there are gmflow-imagenet256, mm-fm-gaussian-imagenet256"),
        ("mine.toml", "--preset mine.toml is neither"),
        ("../presets/quickstart", "--preset ../presets/quickstart is neither"),
        ("x" * 5000, "is neither a preset nor a .toml file"),
        ("x" * 5000 + ".toml", "is neither a preset nor a .toml file"),
        ("x\x00.toml", "is neither a preset nor a .toml file"),
        ("/dev/zero", "--preset /dev/zero is neither"),
    ],
)
def test_a_preset_that_is_not_there(name: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--preset", name]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and words in shown and len(shown) < 500


def test_a_preset_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbf[train]\nsteps = 7\n")
    assert load_preset(str(tmp_path / "mine.toml")).of("train") == {"steps": 7}


@pytest.mark.slow
def test_a_preset_is_reckoned_without_any_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In an empty folder `train --dry-run` says what it assumes of the data, and leaves nothing behind."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(empty)
    assert main(["train", "--preset", "union-imagenet256", "--dry-run"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "2,562,334 samples of 768 x 16 x 16 in 1,000 classes: latents.h5 does not exist" in shown
    assert "gmm.h5, 12.0 GiB" in shown
    assert list(empty.iterdir()) == []


@pytest.mark.slow
def test_flags_go_over_the_preset(small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[train]\nobjective = "gm-kl"\nsteps = 7\nbatch-size = 5\n[sample]\nsteps = 3\nnum = 3')
    arguments = ["train", str(small.latents("classes")), str(tmp_path / "run"), "--preset", str(file), "--dry-run"]
    assert main([*arguments, "--steps", "9", "--components", "2"]) == 0
    shown = {row[0]: row[-1] for line in capsys.readouterr().out.splitlines() if len(row := line.strip("│ ").split())}
    chosen = {name: shown[f"--{name}"] for name in ("objective", "steps", "batch-size", "components")}
    assert chosen == {"objective": "gm-kl", "steps": "9", "batch-size": "5", "components": "2"}
    assert main(["sample", "--preset", str(file), "--help"]) == 0
    assert "[default: 3]" in " ".join(capsys.readouterr().out.split())
