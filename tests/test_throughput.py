"""Rates: what is measured is counted right, and what is kept comes back."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gmtool import throughput as speed
from gmtool.throughput import Speed, device_name, keep_speed, known_speed, matmul_rate, seconds_of, speeds_file

CPU = torch.device("cpu")
FOUND = Speed("a GPU", "bfloat16", matmul=6e14, train=3e14, network="DH-XL")


def test_seconds_are_those_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only the action moves: 2 s the first call, which warms up, then 0.25 s."""
    clock, calls = [0.0], [0]

    def act() -> None:
        clock[0] += 0.25 if calls[0] else 2.0
        calls[0] += 1

    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock[0])
    assert seconds_of(act, CPU, at_least=10) == 0.25
    assert calls[0] == 1 + 40


def test_a_product_counts_two_operations_a_multiply_add(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "seconds_of", lambda *_: 0.5)
    assert matmul_rate(CPU, torch.float32) == 2 * 1024**3 / 0.5


def test_a_fast_device_is_measured_by_wider_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 1e14 operations per second those of 8192 take 11 ms; a slower device is not kept for minutes."""
    for rate, width in ((1e14, 8192), (1e12, 2048), (1e9, 1024)):
        sizes: list[int] = []

        def seconds(act: Callable[[], object], *_: object, rate: float = rate, sizes: list[int] = sizes) -> float:
            sizes.append(act().shape[0])  # type: ignore[attr-defined]
            return 2 * sizes[-1] ** 3 / rate

        monkeypatch.setattr(speed, "seconds_of", seconds)
        assert matmul_rate(torch.device("meta"), torch.float32) == pytest.approx(rate)
        assert sizes[-1] == width


def test_what_was_found_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert known_speed("a GPU", "bfloat16") is None
    keep_speed(FOUND)
    keep_speed(replace(FOUND, precision="float32", train=1e13))
    keep_speed(replace(FOUND, train=4e14))
    assert known_speed("a GPU", "bfloat16") == replace(FOUND, train=4e14)
    assert known_speed("a GPU", "float32") == replace(FOUND, precision="float32", train=1e13)
    assert known_speed("another GPU", "bfloat16") is None
    speeds_file().write_text("{")
    assert known_speed("a GPU", "bfloat16") is None
    keep_speed(FOUND)
    assert known_speed("a GPU", "bfloat16") == FOUND


def test_a_device_has_a_name() -> None:
    assert f"{torch.get_num_threads()} threads" in device_name(CPU)
