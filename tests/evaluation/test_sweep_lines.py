"""A sweep as lines and plots: means and spreads over seeds, the floor, the best point."""

import itertools
from dataclasses import replace
from pathlib import Path
from statistics import stdev

import pytest
from PIL import Image

from gmtool.evaluation.report import Figure, Measurement
from gmtool.evaluation.sweep_lines import (
    EVALUATIONS,
    SCALE,
    Value,
    best_of,
    floors_of,
    lines,
    position_of,
    run_names,
    setting_words,
    value_of,
)
from gmtool.evaluation.sweep_plots import _draw_score, _draw_tradeoff, draw_sweep
from gmtool.evaluation.sweep_table import Axis, Sweep, SweepPoint
from gmtool.stages.sweep.report import print_sweep
from gmtool.stages.sweep.run import SweepReport


def measured(metric: str, value: float, real: float | None) -> Figure:
    return Figure(metric, Measurement(value, None, 9, 9), None if real is None else Measurement(real, None, 9, 9))


def distance(steps: int, scale: float | None, seed: int) -> float:
    return 4.0 / steps + (scale or 0.0) + 0.1 * seed


def point(run: str, solver: str, steps: int, scale: float | None, seed: int) -> SweepPoint:
    settings = {"solver": solver, "steps": steps, "guidance": "none" if scale is None else "prob"}
    if scale is not None:
        settings["guidance_scale"] = scale
    plan = {**settings, "scale": scale or 0.0}
    figures = (
        measured("inception_score", steps + seed, 9.0),
        measured("frechet_distance", distance(steps, scale, seed), 0.25),
        measured("precision", 0.5 + 0.4 * (scale or 0.0), 0.8),
        measured("recall", 0.7 - 0.4 * (scale or 0.0), 0.7),
        measured("magnitude", 0.3 + (scale or 0.0), 0.42),
        measured("colour_saturation", 0.0, 0.0),
    )
    evaluations = steps if scale is None else 2 * steps
    return SweepPoint("", run, settings, plan, seed, 1, evaluations, 9, figures, "gmtool sample")


def grid(
    runs: tuple = ("run",),
    solvers: tuple = ("gm-ode",),
    steps: tuple = (1, 2, 4),
    scales: tuple = (None,),
    seeds: int = 3,
) -> Sweep:
    """The sweep of a made-up grid; a scale of None is no guidance."""
    points = [point(*combination) for combination in itertools.product(runs, solvers, steps, scales, range(seeds))]
    values = {
        "run": runs,
        "solver": solvers,
        "steps": steps,
        "guidance": tuple(dict.fromkeys("none" if scale is None else "prob" for scale in scales)),
        "guidance_scale": tuple(scale for scale in scales if scale is not None),
    }
    axes = tuple(Axis(name, value) for name, value in values.items() if len(value) > 1)
    return Sweep(axes, tuple(points), (), "tokenizer", "pixels", "held-out", "images", "abc")


def test_seeds_are_a_mean_and_a_spread() -> None:
    (group, *_) = grid().groups
    value = value_of(group, "frechet_distance")
    assert value == Value(pytest.approx(4.1), pytest.approx(stdev([4.0, 4.1, 4.2])))
    assert str(value) == "4.1 ± 0.1"
    assert value_of(group, "frechet_distance", real=True) == Value(0.25, 0.0)
    assert value_of(group[:1], "frechet_distance") == Value(4.0, None)
    assert value_of(group, "kernel_distance") is None
    assert value_of((group[0], replace(group[1], figures=())), "frechet_distance") is None


def test_the_floor() -> None:
    assert floors_of(grid(), "frechet_distance") == {9: pytest.approx(0.25)}
    assert floors_of(grid(), "kernel_distance") == {}


def of_two_sizes() -> Sweep:
    """A sweep over two numbers of samples, of which the smaller one has the higher floor."""
    few = grid()
    many = [
        replace(
            point,
            images=90,
            settings={**point.settings, "num": 90},
            figures=tuple(
                replace(figure, real=replace(figure.real, value=figure.real.value / 2)) for figure in point.figures
            ),
        )
        for point in few.points
    ]
    points = [replace(point, settings={**point.settings, "num": 9}) for point in few.points]
    return replace(few, axes=(*few.axes, Axis("num", (9, 90))), points=(*points, *many))


def test_each_number_of_samples_has_its_own_floor() -> None:
    sweep = of_two_sizes()
    assert floors_of(sweep, "frechet_distance") == {9: pytest.approx(0.25), 90: pytest.approx(0.125)}
    (axes,), (tradeoff,) = _draw_score(sweep).axes, _draw_tradeoff(sweep).axes
    lines_at = {line.get_label(): line.get_ydata()[0] for line in axes.lines if "real images" in line.get_label()}
    assert lines_at == {"real images in their place (9)": 0.25, "real images in their place (90)": 0.125}
    stars = {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in tradeoff.lines}
    assert stars["real images in their place (90)"] == pytest.approx((0.35, 0.4))
    assert len({*stars.values()}) == len(stars)


def test_the_best_is_by_the_direction_of_the_metric() -> None:
    groups = grid(scales=(0.1, 0.2)).groups
    for metric, steps, scale in (
        ("frechet_distance", 4, 0.1),
        ("inception_score", 4, 0.1),
        ("magnitude", 1, 0.1),  # the nearest to real images' 0.42
        ("precision", 1, 0.2),
    ):
        best = best_of(groups, metric)
        assert best is not None
        assert (best[0].settings["steps"], best[0].settings["guidance_scale"]) == (steps, scale)
    assert best_of(groups, "kernel_distance") is None


def test_lines_along_evaluations() -> None:
    sweep = grid(runs=("a/run", "b/run"), scales=(None, 0.1))
    curves = lines(sweep, EVALUATIONS)
    assert [curve.label for curve in curves] == [
        f"{run}/run, gm-ode, {words}" for run in "ab" for words in ("unguided", "prob")
    ]
    assert [[position_of(group, EVALUATIONS) for group in line.groups] for line in curves] == [[1, 2, 4], [2, 4, 8]] * 2


def test_lines_along_the_scale() -> None:
    curves = lines(grid(steps=(4, 8), scales=(0.2, None, 0.1)), SCALE)
    assert [[position_of(group, SCALE) for group in line.groups] for line in curves] == [[0.1, 0.2], [None]] * 2
    assert [curve.label for curve in curves][::2] == ["gm-ode, steps 4, prob", "gm-ode, steps 8, prob"]


def test_many_lines_become_one_a_solver_at_the_best() -> None:
    sweep = grid(solvers=("gm-ode", "gm-sde"), scales=tuple(0.1 * index for index in range(6)))
    assert len(lines(sweep, EVALUATIONS)) == 12
    curves = lines(sweep, EVALUATIONS, "frechet_distance")
    assert [curve.label for curve in curves] == ["gm-ode", "gm-sde"]
    for line in curves:
        assert [group[0].settings["guidance_scale"] for group in line.groups] == [0.0, 0.0, 0.0]
        assert [position_of(group, EVALUATIONS) for group in line.groups] == [2, 4, 8]


def test_names_of_runs() -> None:
    assert run_names(grid(runs=("x/a", "x/b"))) == {"x/a": "a", "x/b": "b"}
    assert run_names(grid(runs=("x/a", "y/a"))) == {"x/a": "x/a", "y/a": "y/a"}


def test_settings_in_words() -> None:
    one = point("run", "gm-ode", 2, 0.25, 0)
    assert setting_words(one, "guidance_scale") == "guidance scale 0.25"
    assert setting_words(one, "steps") == "steps 2"
    assert setting_words(point("run", "gm-ode", 2, None, 0), "guidance_scale") == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "sweep",
    [
        grid(),
        grid(steps=(4,), seeds=1),
        grid(scales=(None, 0.1, 0.3)),
        grid(runs=("a", "b"), solvers=("gm-ode", "gm-sde"), scales=(0.1, 0.2, 0.3)),
        grid(runs=("a", "b"), scales=(None, 0.1, 0.2)),
    ],
    ids=["steps", "one point", "scales", "many lines", "many lines, some points unguided"],
)
def test_the_plots(sweep: Sweep, tmp_path: Path) -> None:
    drawn = draw_sweep(sweep, tmp_path)
    assert [picture.name for picture in drawn] == ["score.png", "precision-recall.png", "saturation.png"]
    for path in drawn:
        with Image.open(path) as image:
            assert image.info["Software"] == "gmtool sweep"
            assert len(image.convert("RGB").getcolors(2**16) or ()) > 3
    before = [picture.read_bytes() for picture in drawn]
    draw_sweep(sweep, tmp_path)
    assert [picture.read_bytes() for picture in drawn] == before


def test_plots_of_what_was_not_measured_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the terminal shows none of them."""
    sweep = grid()
    precise = tuple(replace(drawn_point, figures=(measured("precision", 0.5, None),)) for drawn_point in sweep.points)
    print_sweep(SweepReport(tmp_path, replace(sweep, points=precise), 0))
    assert "look at" not in capsys.readouterr().out
    only = tuple(replace(drawn_point, figures=drawn_point.figures[1:2]) for drawn_point in sweep.points)
    assert [picture.name for picture in draw_sweep(replace(sweep, points=only), tmp_path)] == ["score.png"]
    none = tuple(replace(drawn_point, figures=()) for drawn_point in sweep.points)
    assert draw_sweep(replace(sweep, points=none), tmp_path) == ()
    print_sweep(SweepReport(tmp_path, sweep, 0))
    assert "look at" in (shown := capsys.readouterr().out) and "score.png" in shown
