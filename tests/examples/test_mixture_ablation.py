"""The chain of MM-FM's ablation: every command is one that gmtool takes, and all of it runs in miniature."""

import shlex
from pathlib import Path

import pytest
import typer
from user import load_example

from gmtool.cli.app import app
from gmtool.evaluation.sweep_table import read_sweep

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [
            *("a", "--latents", "latents.h5", "--reference", "validation", "--modes", "0,8,64", "--at", "64"),
            *("--train", "--preset mm-fm-imagenet256 --steps 25000", "--sweep", "--preset sweep-steps-mm-fm"),
        ],
    ],
    ids=["digits", "imagenet"],
)
def test_every_command_can_be_typed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    load_example("mixture_ablation").main([*arguments, "--print"])
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    names = [words[1] for words in lines]
    assert names[-1] == "sweep" and names.count("sweep") == 1
    assert names.count("encode") == (not arguments)
    assert names.count("train") == names.count("fit-gmm") + 1  # the Gaussian has no mixture
    for program, name, *rest in lines:
        assert program == "gmtool"
        COMMANDS[name].make_context(name, rest)  # raises what a user would see


@pytest.mark.slow
def test_in_miniature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_example("mixture_ablation").main(
        [
            *(str(tmp_path / "ablation"), "--modes", "0,4", "--at", "4", "--seeds", "1", "--device", "cpu"),
            *("--train", "--model tiny --condition none --steps 2 --batch-size 8 --preview-every 0"),
            *("--sweep", "--steps 1,2 --num 20 --features tokenizer"),
        ]
    )
    sweep = read_sweep(tmp_path / "ablation/sweep")
    names = [Path(run).name for run in dict.fromkeys(point.run for point in sweep.points)]
    assert names == ["gaussian", "modes-4", "spherical-4", "hard-4"]
    assert len(sweep.points) == 8
    assert "best Fréchet distance" in " ".join(capsys.readouterr().out.split())
