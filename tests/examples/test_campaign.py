"""The fault-injection campaign, in miniature."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_no_command_ends_badly(tmp_path: Path) -> None:
    """Flags, flipped bits, hostile files, kills and pairs of processes; what goes wrong is said on standard error."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/benchmarks/campaign.py"), "--small"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "", "HOME": str(tmp_path), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(part in done.stdout for part in ("flags", "bytes", "hostile", "kills", "pairs"))
