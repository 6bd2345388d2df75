"""What the command line shows: progress and notes on standard error, results on standard output."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from gmtool.forecast import Forecast
from gmtool.progress import Progress
from gmtool.words import duration, human_bytes

PLAIN_INTERVAL = 15.0
"""Seconds between two progress lines when standard error is not a terminal."""

SHARES = frozenset({"of peak", "waiting"})
"""Figures that are fractions of a whole, shown in percent."""

BORDER = 3
"""Characters that a column of a table takes beside its text."""

_bars: list[Any] = []
"""The bar that is on the terminal, if any."""


def close_bar() -> None:
    """Take the bar off the terminal: until then the terminal's cursor is hidden."""
    while _bars:
        _bars.pop().stop()


class ConsoleProgress(Progress):
    """A bar with rate, figures and ETA on a terminal; a line now and then elsewhere (logs, pipes)."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._name, self._unit = "", ""
        self._total = self._count = self._start_count = 0
        self._started = self._printed = 0.0

    def begin(self, task: str, total: int, unit: str, done: int = 0) -> None:
        """See `Progress.begin`."""
        self._name, self._unit, self._total, self._count, self._start_count = task, unit, total, done, done
        self._started = self._printed = time.monotonic()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            _bars.append(self._bar)
            self._task = self._bar.add_task(task, total=total, completed=done, text="")

    def advance(self, count: int = 1, figures: Mapping[str, float] | None = None) -> None:
        """See `Progress.advance`."""
        self._count += count
        text = self._text(figures or {})
        if self._bar is not None:
            self._bar.update(self._task, completed=self._count, text=text)
        elif self._count < self._total and time.monotonic() - self._printed > PLAIN_INTERVAL:
            self._printed = time.monotonic()
            print(f"{self._name}: {text}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """See `Progress.end`."""
        if self._bar is not None:
            close_bar()
            self._bar = None
        elif self._count > self._start_count:
            print(f"{self._name}: {self._text({}, ended=True)}", file=sys.stderr, flush=True)

    def note(self, message: str) -> None:
        """See `Progress.note`."""
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False, soft_wrap=True)
        else:
            print(message, file=sys.stderr, flush=True)

    def _text(self, figures: Mapping[str, float], ended: bool = False) -> str:
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = (self._count - self._start_count) / elapsed
        left = (self._total - self._count) / rate if rate > 0 else float("inf")
        shown = "".join(f", {name} {value:{'.1%' if name in SHARES else '.4g'}}" for name, value in figures.items())
        ending = f"in {duration(elapsed)}" if ended or self._count >= self._total else f"{duration(left)} left"
        return f"{self._count:,}/{self._total:,} {self._unit}, {rate:.3g} {self._unit}/s{shown}, {ending}"


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], bold: Container[tuple[int, int]] = ()
) -> None:
    """Print a table on standard output; the first column is left-aligned, the others right-aligned.

    bold: the cells, row and column from 0, that stand out on a terminal.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    console = Console(width=None if sys.stdout.isatty() else 120, markup=False, highlight=False)
    heads = _head_width([columns, *rows], console.width)
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        # on a narrow terminal long words are broken rather than cut off
        width, justify = (heads, "left") if index == 0 else (None, "right")
        table.add_column(column, justify=justify, width=width, overflow="fold")  # type: ignore[arg-type]
    for place, row in enumerate(rows):
        cells = enumerate(row)
        table.add_row(*(Text(text, "bold") if (place, column) in bold else Text(text) for column, text in cells))
    console.print(table)


def _head_width(rows: Sequence[Sequence[str]], width: int) -> int:
    """Of the column at the left: its whole text or, in a table that is too wide, its share and its longest word."""
    heads = [row[0] for row in rows]
    whole, word = (max(map(len, texts)) for texts in (heads, [word for head in heads for word in head.split(" ")]))
    natural = sum(max(map(len, column)) + BORDER for column in itertools.zip_longest(*rows, fillvalue=""))
    return whole if natural < width else min(whole, max(min(word, width // 3), width // len(rows[0]) - BORDER))


def print_forecast(forecast: Forecast, price: float | None = None) -> None:
    """Print what a stage would do, as a table on standard output.

    price: of an hour of this machine, in any currency; the cost is shown where the time is known too.
    """
    rows = [(f"{choice.flag} (auto)", f"{choice.value}: {choice.why}") for choice in forecast.choices]
    for verb, files in (("reads", forecast.reads), ("writes", forecast.writes)):
        rows += [
            (verb, f"{file.path}" if file.bytes is None else f"{file.path}, {human_bytes(file.bytes)}")
            for file in files
        ]
    rows += forecast.work
    memory = None if forecast.memory is None else human_bytes(forecast.memory)
    seconds = None if forecast.seconds is None else duration(forecast.seconds)
    rows.append(("memory", _estimate(memory, forecast.more_memory)))
    rows.append(("time", _estimate(seconds, forecast.more_time)))
    if forecast.seconds is not None and price is not None:
        rows.append(("cost", f"{forecast.seconds / 3600 * price:,.2f}"))
    print_table(forecast.title, ("would", ""), rows)


def _estimate(amount: str | None, more: str) -> str:
    """An amount as far as it is known, in words; more: what comes on top."""
    if amount is None:
        return "unknown before it is measured"
    return f"about {amount}" + (f", and {more}: unknown before measured" if more else "")
