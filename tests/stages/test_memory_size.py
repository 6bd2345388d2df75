from pathlib import Path

import pytest

from gmtool.errors import UserError
from gmtool.stages.fit_gmm.config import gibibytes
from gmtool.stages.presets import load_preset


@pytest.mark.parametrize(
    ("typed", "size"),
    [
        ("8GiB", 8.0),
        ("8", 8.0),
        ("512 MiB", 0.5),
        (".5gib", 0.5),
        ("1TiB", 1024.0),
        ("2GB", 2e9 / 2**30),
        (0.25, 0.25),
        (8, 8.0),
    ],
)
def test_a_size_in_gibibytes(typed: str | float, size: float) -> None:
    assert gibibytes(typed) == pytest.approx(size)


@pytest.mark.parametrize("typed", ["", "GiB", "8XB", "-1", "1e-3", "8 G i B", "nan"])
def test_no_size_is_refused(typed: str) -> None:
    with pytest.raises(UserError, match="--memory must be a size such as 512MiB"):
        gibibytes(typed)


@pytest.mark.parametrize(("written", "size"), [('"8GiB"', 8.0), ("8", 8.0), ("0.5", 0.5)])
def test_a_preset_takes_a_size_as_the_command_line_does(written: str, size: float, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(f"[fit-gmm]\nmemory = {written}\n")
    assert load_preset(str(file)).config("fit-gmm").memory == size


def test_a_presets_wrong_size_is_refused_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('[fit-gmm]\nmemory = "8XB"\n')
    with pytest.raises(UserError, match=r"own.toml: \[fit-gmm\]: --memory must be a size"):
        load_preset(str(file))
