"""Every solver by its name: where it is, what it integrates, and how the commands speak of it.

A new solver is a file with a `gmtool.flow.solvers.base.Solver`, and a row here. Nothing heavy is imported: the flags
are made from this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gmtool.flow.names import On

if TYPE_CHECKING:
    from gmtool.flow.solvers.base import Solver, SolverOptions


@dataclass(frozen=True)
class SolverEntry:
    """A row.

    where: ``module:class``, or the class itself. on: what it integrates; a mixture network also gives a velocity, its
    mean. noisy: whether it adds noise, as that of a Gaussian source. help: a few words. order: None where --order says
    it. substeps, spectral: whether --substeps and --spectral concern it.
    """

    where: str | type[Solver[Any, Any]]
    on: On
    noisy: bool
    help: str
    order: int | None = None
    substeps: bool = False
    spectral: bool = False

    def make(self, options: SolverOptions) -> Solver[Any, Any]:
        """The solver."""
        kind: Any = self.where
        if isinstance(kind, str):
            module, name = kind.split(":")
            kind = getattr(import_module(module), name)
        return kind.configured(options)


_HERE = "gmtool.flow.solvers"

SOLVERS: dict[str, SolverEntry] = {
    "euler": SolverEntry(f"{_HERE}.euler:Euler", "velocity", False, "Euler's method", order=1),
    "heun": SolverEntry(f"{_HERE}.heun:Heun", "velocity", False, "Heun's method, two evaluations per step", order=2),
    "ddim": SolverEntry(f"{_HERE}.ddim:Ddim", "velocity", False, "DDIM", order=1),
    "ddpm-small": SolverEntry(f"{_HERE}.ddpm:DdpmSmall", "velocity", True, "DDPM, least variance", order=1),
    "ddpm-large": SolverEntry(f"{_HERE}.ddpm:DdpmLarge", "velocity", True, "DDPM, largest variance", order=1),
    "dpmpp-2m": SolverEntry(f"{_HERE}.dpmpp:Dpmpp2M", "velocity", False, "DPM-Solver++(2M)", order=2),
    "dpmpp-2m-sde": SolverEntry(f"{_HERE}.dpmpp:Dpmpp2MSde", "velocity", True, "SDE-DPM-Solver++(2M)", order=2),
    "unipc": SolverEntry(f"{_HERE}.unipc:UniPC", "velocity", False, "UniPC", order=2),
    "gm-ode": SolverEntry(f"{_HERE}.gm_ode:GmOde", "mixture", False, "GMFlow's ODE, sub-steps", substeps=True),
    "gm-sde": SolverEntry(f"{_HERE}.gm_sde:GmSde", "mixture", True, "GMFlow's SDE", spectral=True),
    "policy": SolverEntry(
        f"{_HERE}.policy:PolicySolver", "policy", False, "a student's policy, sub-steps", order=1, substeps=True
    ),
}


def names_on(on: On, table: Mapping[str, SolverEntry] = SOLVERS) -> tuple[str, ...]:
    """The solvers that integrate a kind of model."""
    return tuple(name for name, entry in table.items() if entry.on == on)
