"""``gmtool likelihood``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gmtool.errors import UserError
from gmtool.flags import PresetName, with_options
from gmtool.stages.likelihood.config import RESULT, LikelihoodConfig

if TYPE_CHECKING:
    from gmtool.stages.likelihood.report import LikelihoodReport


@with_options(LikelihoodConfig)
def command(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Held-out data: a folder, zip, tar or .npz of images, which are encoded as the run's were, or a "
            "latents file of the run's tokenizer.",
        ),
    ],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that gmtool train wrote.")] = Path("run"),
    *,
    _preset: PresetName = None,
    output: Annotated[
        Path, typer.Option("--output", help="JSON file for the result, which gmtool report shows.", metavar="FILE")
    ] = RESULT,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON; everything else goes to stderr.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be computed, and how; compute nothing.")
    ] = False,
    config: LikelihoodConfig,
) -> None:
    """Compute the negative log-likelihood of held-out data, in nats per dimension of the latents.

    Uses the probability-flow ODE (extra: likelihood). For a network that predicts a mixture, also reports the NLL of
    its velocity, averaged over time. For a network conditioned on modes, the value is an upper bound. The density is
    that of the latents without dequantisation, so compare only runs on the same latents.

    Example: gmtool likelihood validation/ run/ --num 500
    """
    from gmtool.console import ConsoleProgress, print_forecast
    from gmtool.stages.likelihood.plan import plan_likelihood
    from gmtool.stages.likelihood.run import likelihood

    if dry_run and json:
        raise UserError("--json prints a result, and --dry-run computes none: remove one of them")
    if dry_run:
        print_forecast(plan_likelihood(data, run, config, output).forecast())
        return
    report = likelihood(data, run, config, ConsoleProgress(), output)
    if json:
        print(report.to_json())
    else:
        _print_report(report)


def _print_report(report: LikelihoodReport) -> None:
    from gmtool.console import print_table

    kind = "an upper bound" if report.bound else "exact but for the solver"
    print_table(
        f"{report.data} under {report.run}, step {report.step}: {report.count:,} x {report.dimensions:,} numbers",
        ("nats per dimension", "mean", "±", "note"),
        (
            ("latents", *_value(report.latents), kind),
            ("latents, normalised", *_value(report.normalised), f"{report.evaluations:,.0f} evaluations per image"),
            *(
                (("velocity, averaged over time", *_value(report.velocity), "of normalised latents"),)
                if report.velocity is not None
                else ()
            ),
        ),
    )


def _value(estimate: tuple[float, float]) -> tuple[str, str]:
    mean, error = estimate
    return f"{mean:.4f}", f"{error:.2g}"
