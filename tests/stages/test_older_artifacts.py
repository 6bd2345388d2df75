"""What version 0.1.0 wrote opens in every stage, and comes to what it came to then.

tests/data/chain-0.1 is that version's own: 24 digits of three classes by the tokenizer pixels, a mixture of three
modes, a union of 4 steps with 8 samples of it, and an mm-fm run of 4 steps beside the metrics of the 6 that it took
later. Its settings are those of then (--schedule, --fall, --lr-end); the recorded paths are no longer there.
"""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.samples import open_samples
from gmtool.cli.app import main
from gmtool.nn import NETWORKS, Size

CHAIN = Path(__file__).parents[1] / "data" / "chain-0.1"
SMALL = "--model tiny --warmup 1 --batch-size 8 --ema 0.5 --no-tensorboard --device cpu"
UNION = f"train latents.h5 run --objective gm-kl --source gmm --components 2 --lr-knots 100%:0 {SMALL}"
MM_FM = f"train latents.h5 mm-fm --objective mm-fm --lr-curve cosine --preview-every 0 {SMALL}"
FELL = "--lr-knots 1:2e-3,3:1e-4"
"""What --fall 1 3 --lr-end 1e-4 is now."""


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the chain, which is the current folder; ``tiny`` is one narrow block, as where it was written."""
    monkeypatch.setitem(NETWORKS["dit"].sizes, "tiny", Size((1, 16, 2), 2e-3))  # type: ignore[arg-type]
    folder = tmp_path / "chain"
    shutil.copytree(CHAIN, folder)
    monkeypatch.chdir(folder)
    return folder


def types(command: str, exit_code: int = 0) -> None:
    assert main(shlex.split(command)) == exit_code, command


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def metrics(file: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "kind"), [("latents.h5", "latents"), ("gmm.h5", "mixture"), ("run", "run"), ("samples", "samples")]
)
def test_it_is_inspected(chain: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str) -> None:
    types(f"inspect {name}")
    first = capsys.readouterr().out.splitlines()[0]
    assert kind in first and first.endswith("0.1.0")


@pytest.mark.slow
def test_its_mixture_needs_no_second_fit(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(chain)
    types("fit-gmm --modes 3 --device cpu")
    assert "nothing to do" in "".join(capsys.readouterr())
    assert before.items() <= contents(chain).items()


@pytest.mark.slow
def test_its_latents_are_fitted_anew(chain: Path) -> None:
    types("fit-gmm latents.h5 other.h5 --modes 2 --device cpu")
    assert (chain / "other.h5").is_file()


def test_its_run_is_complete(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(chain)
    types(f"{UNION} --steps 4")
    assert "has all its 4 steps" in capsys.readouterr().err
    assert before.items() <= contents(chain).items()  # the last preview, which the data do not hold, is drawn again


def test_its_run_whose_rate_follows_the_steps_has_no_more_of_them(
    chain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(chain)
    types(f"{UNION} --steps 6", exit_code=2)
    assert "was begun with --steps 4, not --steps 6" in capsys.readouterr().err
    assert contents(chain) == before


def test_its_run_with_another_rate_is_another_run(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    types(f"{MM_FM} --lr-knots 1:2e-3,3:2e-4 --steps 6", exit_code=2)
    error = capsys.readouterr().err
    assert "was begun with --lr-knots" in error and error.count("\n") == 1


def test_its_run_resumes_as_it_did_then(chain: Path) -> None:
    types(f"{MM_FM} {FELL} --steps 6 --save-every 2")
    now, then = metrics(chain / "mm-fm/metrics.jsonl"), metrics(chain / "mm-fm-6-steps.jsonl")
    assert [name["step"] for name in now] == [1, 2, 3, 4, 5, 6]
    for one, other in zip(now, then, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_its_samples_are_drawn_again(chain: Path) -> None:
    types("sample run again --gmm gmm.h5 --num 8 --steps 2 --solver gm-ode --device cpu")
    with open_latents(chain / "samples/latents.h5") as then, open_latents(chain / "again/latents.h5") as now:
        one, other = (folder.patches(slice(None)).astype(np.float32) for folder in (then, now))
        np.testing.assert_allclose(other, one, atol=2e-3, rtol=2e-3)
        assert (then.labels == now.labels).all()
    before, after = (open_samples(chain / name).images().astype(int) for name in ("samples", "again"))
    assert np.abs(before - after).max() <= 1


def test_its_samples_are_scored(chain: Path) -> None:
    types("eval samples --reference latents.h5 --features tokenizer --device cpu")
    figures = json.loads((chain / "samples/metrics.json").read_text())["figures"]
    assert figures and all(np.isfinite(figure["generated"]["value"]) for figure in figures)
