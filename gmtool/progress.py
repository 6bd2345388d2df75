"""Progress reports of a stage to its caller. Stages print nothing themselves."""

from __future__ import annotations

from collections.abc import Mapping


class Progress:
    """Receiver of a stage's news. This base class is silent; the command line draws a bar.

    A stage calls ``begin`` before a piece of work whose length it knows, ``advance`` as it proceeds, ``end`` after
    it, and ``note`` for a line that a user should see whatever the verbosity.
    """

    def begin(self, task: str, total: int, unit: str, done: int = 0) -> None:
        """Start a task of ``total`` units (plural name ``unit``), of which ``done`` were finished earlier."""

    def advance(self, count: int = 1, figures: Mapping[str, float] | None = None) -> None:
        """Report ``count`` more units, with figures worth showing (loss, log-likelihood, ...)."""

    def end(self) -> None:
        """Finish the current task."""

    def note(self, message: str) -> None:
        """Report one line in words."""
