"""What a machine computes in a second: its limit, by measurement, and what training reached on it.

The limit is the rate of matrix products of a size that serves the device well, in the arithmetic of the network; a
data sheet's figure is not reached by any program. What `gmtool bench` found is kept in the user's cache folder, so
that `gmtool train --dry-run` can tell how long a run will take.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from gmtool.artifacts.files import written_aside


@dataclass(frozen=True)
class Speed:
    """Operations per second on a device in a precision: of matrix products, and of a training step.

    network: what was trained, in words.
    """

    device: str
    precision: str
    matmul: float
    train: float
    network: str


def device_name(device: torch.device) -> str:
    """The device's human-readable name: the GPU's name, or the processor's with its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(action: Callable[[], object], device: torch.device, at_least: float) -> float:
    """Mean seconds of an action, over as many calls as take ``at_least`` seconds together, after one that warms up."""
    action()
    synchronise(device)
    calls, done, started = 1, 0, time.perf_counter()
    while True:
        for _ in range(calls):
            action()
        synchronise(device)
        done, spent = done + calls, time.perf_counter() - started
        if spent >= at_least:
            return spent / done
        calls = max(1, min(2 * calls, round(calls * (at_least - spent) / max(spent, 1e-6))))


NARROWEST, WIDEST = 1024, 8192
"""Widths of the matrices by whose products a device is measured."""
BUSY = 5e-3
"""Seconds that a product takes which serves its device well: what surrounds it no longer counts."""


def matmul_rate(device: torch.device, precision: torch.dtype, at_least: float = 0.3) -> float:
    """Operations per second of square matrix products in a precision: 2 n^3 / seconds for matrices (n, n).

    at_least: seconds of the measurement. n is doubled from `NARROWEST` until a product takes `BUSY` seconds, up to
    `WIDEST`.
    """
    width = NARROWEST
    while width < WIDEST and _product_seconds(width, device, precision, 0.0) < BUSY:
        width *= 2
    return 2 * width**3 / _product_seconds(width, device, precision, at_least)


def _product_seconds(width: int, device: torch.device, precision: torch.dtype, at_least: float) -> float:
    left, right = (torch.randn(width, width, device=device).to(precision) for _ in range(2))
    product = torch.empty_like(left)
    return seconds_of(lambda: torch.mm(left, right, out=product), device, at_least)


def speeds_file() -> Path:
    """The file in which `gmtool bench` stores its results."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "gmtool" / "speeds.json"


def known_speed(device: str, precision: str) -> Speed | None:
    """The speed measured earlier for a device and a precision; None without one, or when the file cannot be read."""
    return next((speed for speed in _read() if (speed.device, speed.precision) == (device, precision)), None)


def speed_row(speed: Speed | None) -> tuple[str, str]:
    """The row of a dry run on the speed by which it estimates the time: a name and words."""
    if speed is None:
        return "speed", "unknown: `gmtool bench` measures this machine"
    return "speed", f"{speed.train / 1e12:.3g} TFLOP/s, measured with {speed.network}"


def keep_speed(speed: Speed) -> None:
    """Store a measured speed, in place of an earlier one of the same device and precision.

    Raises OSError where the file cannot be written.
    """
    others = [known for known in _read() if (known.device, known.precision) != (speed.device, speed.precision)]
    path = speeds_file()
    with written_aside(path) as part:
        part.write_text(json.dumps([asdict(known) for known in (*others, speed)], indent=1))


def _read() -> list[Speed]:
    try:
        return [Speed(**values) for values in json.loads(speeds_file().read_text())]
    except (OSError, ValueError, TypeError):
        return []
