import pytest

from gmtool.config.fit_gmm import gibibytes
from gmtool.errors import UserError


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
