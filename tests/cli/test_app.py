"""The command line as a whole: its help, its speed, and what a user sees when something goes wrong."""

import errno
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from small import Small
from user import start_gmtool

from gmtool import __version__
from gmtool.cli.app import app, main
from gmtool.progress import Progress
from gmtool.settings import flag, make, settings_of
from gmtool.stages.presets import STAGES as STAGE_CONFIGS
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.run import train
from gmtool.training.checkpoint import list_checkpoints

ROOT = typer.main.get_command(app)
COMMANDS = ROOT.commands  # type: ignore[attr-defined]
STAGES = ("encode", "fit-gmm", "train", "sample", "eval")
QUICK = ["--steps", "3", "--batch-size", "8", "--preview-every", "0", "--device", "cpu"]


def one_line(shown: str) -> bool:
    return shown.startswith("gmtool: error: ") and shown.count("\n") == 1 and "Traceback" not in shown


def ends_in_one_line(shown: str) -> bool:
    """What went wrong, after what was said before."""
    return one_line(shown.splitlines(keepends=True)[-1]) and "Traceback" not in shown


# --- help -------------------------------------------------------------------------------------------------------------


def test_the_stages_are_there() -> None:
    assert {*STAGES, "inspect", "quickstart"} <= set(COMMANDS)
    assert "Example: " in ROOT.epilog


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_complete(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = COMMANDS[name]
    assert f"Example: gmtool {name}" in command.help
    for option in command.params:
        assert option.help, option.name
        assert option.help.endswith("."), option.help
        if option.param_type_name == "option":
            assert all("_" not in spelling for spelling in option.opts), option.opts
            number = option.type.name in ("integer", "float", "integer range", "float range")
            assert option.metavar or not number, f"{option.name} has no unit"
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    for option in command.params:
        for spelling in option.opts if option.param_type_name == "option" else [option.metavar]:
            assert spelling in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_defaults_are_told(name: str) -> None:
    """Shown, or put in words where they depend on the rest."""
    for option in COMMANDS[name].params:
        if option.param_type_name != "option" or option.is_flag:
            continue
        assert option.show_default or "efault" in option.help, f"{name} --{option.name}"


@pytest.mark.parametrize(
    ("name", "flag", "elsewhere"),
    [
        ("train", "--steps", "sample --steps"),
        ("sample", "--steps", "train --steps"),
        ("train", "--ema", "sample --ema"),
        ("sample", "--ema", "train --ema"),
        ("train", "--spectral", "sample --spectral"),
        ("sample", "--spectral", "train --spectral"),
        ("fit-gmm", "--modes", "sample --modes"),
        ("sample", "--modes", "fit-gmm --modes"),
        ("encode", "--patch-size", "train --patch-size"),
        ("train", "--patch-size", "encode --patch-size"),
        ("train", "--flip", "encode --flip"),
    ],
)
def test_a_flag_that_means_something_else_in_another_command_says_so(name: str, flag: str, elsewhere: str) -> None:
    option = next(option for option in COMMANDS[name].params if flag in option.opts)
    assert elsewhere in option.help
    command, other = elsewhere.split()
    assert any(other in option.opts for option in COMMANDS[command].params)


def test_the_examples_in_the_help_can_be_parsed() -> None:
    for name, command in COMMANDS.items():
        example = command.help.split("Example: gmtool ", 1)[1].split("\n")[0].split()
        assert example[0] == name
        command.make_context(name, example[1:])  # raises what a user would see


def test_without_arguments_it_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Usage: gmtool" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gmtool {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--steps", 9000 * "x"],
        ["train", "--lr-knots", 9000 * "x"],
        ["train", "--lr-knots", 3000 * "x "],
        ["sample", "--solver", 9000 * "x"],
        ["encode", "--tokenizer", 9000 * "x"],
        ["eval", "--metrics", 9000 * "x"],
        ["train", "--preset", 9000 * "x"],
        [9000 * "x"],
        ["train", "--" + 9000 * "x"],
        ["import", "missing.h5", "run", "--cls-gmm", 9000 * "x"],
        ["inspect", 9000 * "x"],
    ],
    ids=lambda arguments: " ".join(arguments)[:20],
)
def test_what_is_too_long_is_not_repeated_whole(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert one_line(shown) and len(shown) < 2100, len(shown)


def test_every_command_is_told_by_a_whole_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out.split("Commands:")[1]
    assert not [line for line in listed.splitlines() if line.endswith("...")]
    listed = " ".join(listed.split())
    for name, command in COMMANDS.items():
        sentence = command.help.split("\n")[0]
        assert sentence.endswith(".") and f"{name} {sentence}" in listed


@pytest.mark.parametrize("name", STAGES)
def test_flags_stand_under_the_title_of_their_component(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    sections = dict(re.findall(r"^(\S[^\n]*):\n((?:  .*\n|\n)*)", shown, flags=re.MULTILINE))
    for setting in settings_of(STAGE_CONFIGS[name]).values():
        assert re.search(rf"^  {flag(setting.name)}\b", sections[setting.group or "Options"], flags=re.MULTILINE)
    assert list(sections)[:2] == ["Arguments", "Options"]
    titles = [setting.group for setting in settings_of(STAGE_CONFIGS[name]).values() if setting.group]
    assert list(sections)[2:] == list(dict.fromkeys(titles))


# --- what is imported -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--help"], ["train", "--help"], ["sample", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    """For its speed."""
    code = "import sys; from gmtool.cli.app import main; main(sys.argv[1:]); print('loaded:', *sys.modules)"
    command = [sys.executable, "-c", code, *arguments]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Usage: gmtool" in shown
    loaded = set(shown.split("loaded:")[1].split())
    heavy = {"torch", "torchvision", "faiss", "transformers", "diffusers", "numpy", "scipy", "sklearn", "h5py"}
    assert not loaded & (heavy | {"PIL", "matplotlib", "safetensors", "torch_fidelity", "rich", "numba"})


# --- what is wrong is said in one line --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "No such command 'trian'"),
        (["--quux"], "--quux"),
        *(([name, "--quux"], f"--quux (see gmtool {name} --help)") for name in COMMANDS),
        (["train", "--steps", "many"], "--steps"),
        (["train", "--steps", "0"], "--steps must be at least 1, not 0"),
        (["sample", "--steps", "0"], "--steps must be at least 1, not 0"),
        (["quickstart", "--num", "1"], "--num must be at least 2"),
        (["train", "--objective", "gan"], "--objective"),
        (["train", "a.h5", "b", "c"], "c"),
        (["encode"], "images does not exist: give a folder, .zip or .tar"),
        (["train"], "latents.h5 does not exist: give what `gmtool encode` writes"),
        (["fit-gmm"], "latents.h5 does not exist"),
        (["sample"], "run does not exist: give the folder that `gmtool train` writes"),
        (["eval"], "samples does not exist: give what `gmtool sample` wrote"),
        (["inspect", "nothing"], "nothing does not exist"),
        (["encode", "nothing"], "nothing does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_was_typed_wrong(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert one_line(shown.err) and words in shown.err
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def work(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with latents.h5 and gmm.h5."""
    shutil.copy(small.latents("classes"), tmp_path)
    shutil.copy(small.gmm("classes"), tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained(small: Small, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs, by what is particular in them. Not to be written to."""
    root = tmp_path_factory.mktemp("trained")
    base = {"steps": 1, "batch_size": 8, "preview_every": 0, "device": "cpu"}
    for name, kind, settings in (
        ("plain", "classes", {}),
        ("flat", "flat", {}),
        ("mixture", "classes", {"objective": "gm-kl"}),
        ("alone", "classes", {"objective": "gm-kl", "condition": "none"}),
    ):
        train(small.latents(kind), root / name, make(TrainConfig, {**base, **settings}), Progress())
    return {path.name: path for path in root.iterdir()}


@pytest.mark.parametrize(
    ("run", "arguments", "words"),
    [
        ("flat", ["--classes", "1"], "was trained without classes"),
        ("plain", ["--classes", "zebra"], "--classes: 'zebra' is neither a class name"),
        ("plain", ["--guidance", "prob"], "--guidance prob needs a mixture head"),
        ("alone", ["--guidance", "prob"], "needs a run with conditions"),
        ("plain", ["--solver", "gm-ode"], "--solver gm-ode needs a mixture head"),
        ("plain", ["--checkpoint", "7"], "--checkpoint 7"),
        ("plain", ["--device", "cuda:9"], "--device cuda:9"),
        ("plain", ["--decoder", "x/y"], "--decoder is for latents of an encoder"),
        ("plain", ["--order", "1"], "--order belongs to gm-ode and gm-sde, not to --solver euler"),
        ("mixture", ["--solver", "heun", "--order", "2"], "--order belongs to gm-ode and gm-sde, not to --solver heun"),
        ("mixture", ["--solver", "gm-sde", "--substeps", "2"], "--substeps belongs to gm-ode, not to --solver gm-sde"),
        ("mixture", ["--orthogonal", "0.5"], "--orthogonal has no effect without --guidance"),
        ("mixture", ["--guidance", "cfg", "--orthogonal", "0.5"], "--orthogonal has no effect on --guidance cfg"),
    ],
)
def test_what_a_run_cannot_do(
    trained: dict[str, Path],
    run: str,
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["sample", str(trained[run]), str(tmp_path / "samples"), *arguments]) == 2
    shown = capsys.readouterr()
    assert one_line(shown.err) and words in shown.err
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_sampling_writes_nothing(
    trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def files(folder: Path) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    run = trained["mixture"]
    before = files(run)
    arguments = ["sample", str(run), str(tmp_path / "samples"), "--num", "70", "--steps", "6", "--guidance", "prob"]
    assert main([*arguments, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for words in ("70 of 16 x 2 x 2, step 1", "gm-ode, 6 steps, order 2, 21 sub-steps, prob 0.04", "2 batches of 12"):
        assert words in shown
    assert list(tmp_path.iterdir()) == []
    assert files(run) == before


def test_the_wrong_file_in_each_place(work: Path, trained: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    (work / "text.h5").write_text("text")
    (work / "half.h5").write_bytes((work / "latents.h5").read_bytes()[:5000])
    before = sorted(work.rglob("*"))
    run = str(trained["plain"])
    for arguments, words in (
        (["train", "gmm.h5"], "gmm.h5 is a fitted mixture, not a latents file: give what `gmtool encode` writes"),
        (["train", "text.h5"], "text.h5 is not a whole HDF5 file"),
        (["train", "half.h5"], "half.h5 is not a whole HDF5 file"),
        (["train", run], "is a folder, not a latents file"),
        (
            ["train", "--gmm", "latents.h5"],
            "is a latents file, not a fitted mixture: give what `gmtool fit-gmm` writes",
        ),
        (["train", "latents.h5", "latents.h5"], "latents.h5 exists and is not a run"),
        (["train", "latents.h5", "."], ". exists and is not a run"),
        (["sample", "latents.h5"], "latents.h5 is a latents file, not a training run: give what `gmtool train` writes"),
        (["sample", run, "latents.h5"], "latents.h5 is a file"),
        (["sample", run, run], "holds other things than samples"),
        (["eval", run], "is a training run: draw samples from it with `gmtool sample`"),
        (["fit-gmm", "latents.h5", run], "is a folder"),
    ):
        assert main(arguments) == 2, arguments
        shown = capsys.readouterr().err
        assert one_line(shown) and words in shown, shown
    assert sorted(work.rglob("*")) == before


@pytest.mark.parametrize("arguments", [["train"], ["sample", "RUN"], ["quickstart"]], ids=lambda value: value[0])
def test_a_read_only_folder(
    work: Path,
    trained: dict[str, Path],
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    before = sorted(work.rglob("*"))
    assert main([str(trained["plain"]) if argument == "RUN" else argument for argument in arguments]) == 2
    shown = capsys.readouterr()
    assert one_line(shown.err) and "is read-only; choose another output" in shown.err
    assert sorted(work.rglob("*")) == before


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            RuntimeError("first line\nsecond line"),
            1,
            "internal error: RuntimeError: first line second line (set GMTOOL",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "the disk is full: free some space"),
        (OSError("Can't write data (errno = 28, error message = 'No space left on device')"), 1, "the disk is full"),
        (
            OSError(errno.EFBIG, "File too large"),
            1,
            "a file is larger than is allowed here (ulimit -f)",
        ),
        (OSError(errno.EDQUOT, "Quota exceeded", "x"), 1, "the disk quota is used up: free some space"),
        (PermissionError(errno.EACCES, "denied", "there/file"), 2, "there/file: no permission to read or write it"),
        (OSError(errno.EROFS, "read-only", "there/file"), 2, "there/file: no permission"),
        (FileNotFoundError(errno.ENOENT, "none", "there/file"), 2, "there/file does not exist"),
        (MemoryError(), 1, "fewer --workers or less --memory, where a command has them"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_errors_that_no_stage_foresaw(
    error: BaseException,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("gmtool.stages.inspect.run.describe", fail)
    assert main(["inspect", "x"]) == code
    shown = capsys.readouterr().err
    assert one_line(shown) and words in shown
    if isinstance(error, RuntimeError):
        monkeypatch.setenv("GMTOOL_TRACEBACK", "1")
        with pytest.raises(RuntimeError):
            main(["inspect", "x"])


@pytest.mark.slow
def test_a_reader_that_goes_away(small: Small, tmp_path: Path) -> None:
    process = start_gmtool(["inspect", str(small.latents("classes"))], tmp_path)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1
    process.stderr.close()


@pytest.mark.slow
def test_a_terminal_that_knows_only_ascii(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    shutil.copy(small.latents("classes"), tmp_path / "café.h5")
    for name, code, words in (("café.h5", 0, r"caf\xe9.h5 is a latents file"), ("ü.h5", 2, r"\xfc.h5 does not exist")):
        process = start_gmtool(["inspect", name], tmp_path)
        shown = "".join(process.communicate())
        assert process.returncode == code
        assert words in shown and "Traceback" not in shown and "UnicodeEncodeError" not in shown


# --- interruption -----------------------------------------------------------------------------------------------------


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.slow
def test_an_interrupted_training_resumes(work: Path, small: Small) -> None:
    arguments = ["train", "--steps", "24", "--batch-size", "8", "--save-every", "4", "--preview-every", "0"]
    arguments += ["--device", "cpu", "--workers", "1"]  # a worker hears of Ctrl-C too
    process = start_gmtool(arguments, work, own_group=True)
    while process.poll() is None and lines(work / "run/metrics.jsonl") < 6:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)
    shown, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert shown == ""
    assert ends_in_one_line(error) and "run the same command again" in error
    saved = list_checkpoints(work / "run/checkpoints")[-1].step
    assert 6 <= saved < 24
    assert saved == lines(work / "run/metrics.jsonl")  # it saved the step that it was in
    config = make(
        TrainConfig, {"steps": 24, "batch_size": 8, "save_every": 4, "preview_every": 0, "device": "cpu", "workers": 1}
    )
    assert train(Path("latents.h5"), Path("run"), config, Progress()).resumed_from == saved
    train(Path("latents.h5"), Path("whole"), config, Progress())
    assert (work / "run/metrics.jsonl").read_text() == (work / "whole/metrics.jsonl").read_text()


def test_an_interrupted_quickstart_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gmtool.stages.encode.run.encode_images", interrupt)
    assert main(["quickstart"]) == 130
    assert one_line(capsys.readouterr().err)


def test_what_a_scheduler_sends_is_an_interruption(
    small: Small, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In any command; a second signal, while things are put in order, is passed over."""

    def slow(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("gmtool.stages.inspect.run.describe", slow)
    assert main(["inspect", str(small.latents("classes"))]) == 130
    assert one_line(shown := capsys.readouterr().err) and "interrupted; run the same command again" in shown
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_on_a_terminal_there_is_a_bar_and_the_cursor_comes_back(work: Path) -> None:
    leader, follower = pty.openpty()
    arguments = ["train", "--steps", "10000", "--batch-size", "8", "--preview-every", "0", "--device", "cpu"]
    process = start_gmtool(arguments, work, stderr=follower)
    os.close(follower)
    shown = b""
    while b"loss" not in shown:
        shown += os.read(leader, 4096)
    process.send_signal(signal.SIGINT)
    while True:
        try:
            read = os.read(leader, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not read:
            break
        shown += read
    os.close(leader)
    process.communicate()
    assert process.returncode == 130
    assert b"steps/s" in shown
    hide, show = shown.rfind(b"\x1b[?25l"), shown.rfind(b"\x1b[?25h")
    assert 0 <= hide < show < shown.rfind(b"gmtool: error: interrupted")


# --- a full disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB; skipped where one may not be made."""
    place = tmp_path / "disk"
    place.mkdir()
    made = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(place)], capture_output=True, check=False
        ).returncode
    )
    if not made:
        pytest.skip("no right to mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, leave: int) -> Path:
    filler = place / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(place).free - leave))
    return filler


@pytest.mark.slow
def test_a_disk_that_is_full_during_training(
    small: Small, disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too full to begin, then full at the second checkpoint; with free space it resumes."""
    run, latents = str(disk / "run"), str(small.latents("classes"))
    arguments = ["train", latents, run, *QUICK, "--save-every", "1", "--keep", "1"]
    filler = fill(disk, 2**20)
    assert main(arguments) == 1
    shown = capsys.readouterr()
    assert ends_in_one_line(shown.err) and "run/checkpoints" in shown.err and "are free there" in shown.err
    monkeypatch.setattr("gmtool.stages.train.run.check_space", lambda *_, **__: None)  # it fills later
    filler.unlink()
    filler = fill(disk, 20 * 2**20)
    assert main(arguments) == 1
    shown = capsys.readouterr()
    assert ends_in_one_line(shown.err) and "the disk is full" in shown.err
    assert [path.name for path in (disk / "run/checkpoints").iterdir()] == ["step-00000001"]
    assert not list(disk.rglob(".*"))
    filler.unlink()
    monkeypatch.undo()
    monkeypatch.setattr("gmtool.stages.train.run.check_space", lambda *_, **__: None)
    shutil.copytree(disk / "run", disk.parent / "moved")
    shutil.rmtree(disk / "run")
    assert main(["train", latents, str(disk.parent / "moved"), *QUICK, "--save-every", "1", "--keep", "1"]) == 0
    assert "resuming" in capsys.readouterr().err


def test_a_disk_that_is_full_during_sampling(
    trained: dict[str, Path], disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sample", str(trained["plain"]), str(disk / "samples"), "--num", "300", "--steps", "1"]
    monkeypatch.setattr("gmtool.stages.sample.run.check_space", lambda *_: None)
    filler = fill(disk, 300_000)
    assert main(arguments) == 1
    shown = capsys.readouterr()
    assert "the disk is full" in shown.err.splitlines()[-1]
    assert "Traceback" not in shown.err
    assert not (disk / "samples").exists()
    filler.unlink()
    assert main(arguments) == 0
    assert json.loads((disk / "samples/sampling.json").read_text())["details"]["count"] == 300


@pytest.mark.slow
def test_flags_of_several_values(capsys: pytest.CaptureFixture[str], small: Small, tmp_path: Path) -> None:
    """A tuple takes its values at once, a list one at a time; what is given replaces the default."""
    arguments = ["train", str(small.latents("classes")), str(tmp_path / "run"), "--dry-run", "--device", "cpu"]
    schedule = ["--lr-knots", "9:1e-4,50%:0", "--betas", "0.8", "0.9"]
    averages = ["--ema", "0.5", "--ema", "0.75", "--ema-power", "0.1"]
    assert main([*arguments, *schedule, *averages]) == 0
    shown = {tuple(line.strip("│ ").split("│")) for line in capsys.readouterr().out.splitlines() if "│" in line}
    settings = {name.strip(): value.strip() for name, value in (text for text in shown if len(text) == 2)}
    assert settings["--lr-knots"] == "9:1e-4,50%:0"
    assert settings["--betas"] == "0.8 0.9"
    assert settings["--ema"] == "0.5 0.75"
    assert settings["--ema-power"] == "0.1"
