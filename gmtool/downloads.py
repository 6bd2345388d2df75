"""Files of weights that a server publishes: fetched once, whole or not at all, and what was published."""

from __future__ import annotations

import hashlib
import math
import time
import urllib.request
from http.client import HTTPResponse
from pathlib import Path

from gmtool.artifacts.files import written_aside
from gmtool.progress import Progress

MIB = 2**20
CONNECT_SECONDS = 5.0
"""Longest silence of the server."""


def download(url: str, target: Path, digest: str, title: str, progress: Progress, seconds: float | None = None) -> None:
    """Fetch a file to ``target``.

    digest: the first digits of its SHA-256. seconds: time limit; None for no limit while data keep
    coming. Raises OSError after `CONNECT_SECONDS` of silence, when the time is up, or for other content.
    """
    with urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as answer, written_aside(target) as part:
        progress.begin(title, int(answer.headers["Content-Length"] or 0) // MIB, "MiB")
        try:
            received = _receive(answer, part, progress, seconds)
        finally:
            progress.end()
        if not received.startswith(digest):
            raise OSError("the server sent other content")


def _receive(answer: HTTPResponse, target: Path, progress: Progress, seconds: float | None) -> str:
    """Write what the server sends to ``target``; return its SHA-256. Raises TimeoutError after ``seconds``."""
    digest, deadline = hashlib.sha256(), time.monotonic() + (seconds or math.inf)
    received = 0
    with target.open("wb") as file:
        while block := answer.read1(MIB):  # what is there: a slow server must not hold us beyond the deadline
            file.write(block)
            digest.update(block)
            progress.advance((received + len(block)) // MIB - received // MIB)
            received += len(block)
            if time.monotonic() > deadline:
                raise TimeoutError(f"not done after {seconds:g} s")
    return digest.hexdigest()
