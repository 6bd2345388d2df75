"""The command that a new run's stage suggests replaces no samples of another run."""

from pathlib import Path

import pytest

from gmtool.artifacts.manifest import Input, Manifest
from gmtool.stages.sample.next_command import sample_command


def drawn(folder: str, run: str) -> None:
    """A folder of samples of a run."""
    Path(folder).mkdir()
    record = Manifest("samples", "sample", "", {}, (Input("run", str(Path(run).absolute()), ""),))
    Path(folder, "sampling.json").write_text(record.to_json())


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_default_folder_while_it_is_free_or_the_run_s_own() -> None:
    assert sample_command(Path("run")) == "gmtool sample run"
    drawn("samples", "run")
    assert sample_command(Path("run")) == "gmtool sample run"


def test_a_student_s_folder_has_a_name_of_its_own() -> None:
    assert sample_command(Path("student"), default=False) == "gmtool sample student samples-student"
    drawn("samples-student", "student")
    assert sample_command(Path("student"), default=False) == "gmtool sample student samples-student"


def test_folders_of_others_are_passed_over() -> None:
    drawn("samples", "run")
    assert sample_command(Path("runs/my union")) == "gmtool sample 'runs/my union' 'samples-my union'"
    drawn("samples-run", "other/run")
    Path("samples-run-2").touch()
    assert sample_command(Path("run2/run")) == "gmtool sample run2/run samples-run-3"
