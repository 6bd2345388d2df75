"""The benchmark of a GPU, in miniature."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "examples" / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_in_miniature_without_what_is_heavy(tmp_path: Path) -> None:
    """Without faiss, diffusers and torch-fidelity too: every part leaves a figure, and none fails."""
    code = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(('faiss', 'diffusers', 'torch_fidelity', 'sklearn'))); "
        f"sys.argv = ['gpu.py', '--smoke']; runpy.run_path({str(BENCHMARK)!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(BENCHMARK.parents[2]), "OMP_NUM_THREADS": "1", "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    table = done.stdout.splitlines()
    assert table[0].endswith("| measured | aim |") and all(line.count("|") == 4 for line in table)
    assert "Error" not in done.stdout
    for words in ("matrix products", "DiTDH-tiny, fm, eager", "DiT-tiny/2, gm-kl", "waited", "gm-ode", "EM, 16 modes"):
        assert words in done.stdout
    assert not list(tmp_path.rglob("*.h5"))
