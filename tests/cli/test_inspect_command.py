import json
from pathlib import Path

import pytest
from small import Small

from gmtool.cli.app import main


def test_the_table(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(small.gmm("classes"))]) == 0
    shown = capsys.readouterr().out
    for words in ("is a fitted mixture, made by gmtool fit-gmm", "patch_mean", "4 x 16 x 2 x 2", "modes", "matches"):
        assert words in shown


def test_the_json(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(small.latents("classes")), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["kind"] == "latents"
    assert record["arrays"]["patches"] == {
        "shape": [60, 16, 2, 2],
        "dtype": "float16",
        "unit": "tokenizer output, not normalised",
        "checksum": "",
    }
    assert [source["state"] for source in record["inputs"]] == ["matches"]
    assert record["facts"] == {"samples": "60", "classes": "3"}


def test_one_line_for_what_it_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "none")]) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", f"gmtool: error: {tmp_path / 'none'} does not exist\n")
