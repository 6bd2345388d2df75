"""Students of one, two and four evaluations beside their teachers at 1 ... 50: ten dimensions, and real digits.

Teachers are flow matching, MM-FM and the union; students imitate them (`gmtool.flow.imitation`), those of a mixture in
each mode's whitened coordinates. In ten dimensions (`mixture_source`) MM-FM is conditioned on the mode; the score is
squared sliced W2 to held-out points, a mean over many draws of both, beside that of other points of the data and of
training points drawn with replacement: what a model would have that gives these exactly. On the digits (`digits`) all
are conditioned on the class, and MM-FM is not conditioned on the mode; the score is the Fréchet distance to digits that
took no part in training. Tables of mean and standard deviation over the seeds, and a picture.

    python examples/students.py points            # hours on one idle core; may be stopped, and resumes
    python examples/students.py digits            # about five hours
    python examples/students.py points --training-points 400000    # to learn from, instead of 20,000
    python examples/students.py points --quick    # the same in miniature, for a look at the output
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import digits_study
import mixture_source
import torch
from digits import SAMPLES, Digits, imitation, mixture, prepare, score, student, trained
from mixture_source import BATCH, COMPONENTS, DEPTH, DISTANCES, FLOWS, WIDTH
from point_flows import DIMENSIONS, MODES, curved_modes, optimise
from torch import Tensor

from gmtool.artifacts.files import written_aside
from gmtool.artifacts.safetensors_io import read_tensors, write_tensors
from gmtool.console import print_table
from gmtool.evaluation.trajectory import sliced_distance
from gmtool.flow.coupling import draw_modes
from gmtool.flow.imitation import Imitation, Segments
from gmtool.flow.method import Method
from gmtool.flow.method import student as taught_by
from gmtool.flow.model import Predict, velocity_model
from gmtool.flow.solvers.base import integrate
from gmtool.flow.solvers.policy import PolicySolver
from gmtool.flow.source import ModeMixture, ModeStatistics
from gmtool.nn.architecture import HeadShape
from gmtool.nn.mlp import PointNetwork
from gmtool.nn.widen import begin_as
from gmtool.settings import changed
from gmtool.streams import generator

TEACHERS = {
    "flow matching": "Gaussian, independent (fm)",
    "MM-FM": "mixture, mode, conditioned",
    "union": "mixture, mode, gm-kl (union)",
}
EVALUATIONS, STUDENTS = (1, 2, 4, 8, 50), (1, 2, 4)
DRAWS = 32  # of points and of held-out points for a score: one of 20,000 hangs on how many of them fall into each mode
RATE, SUBSTEPS = 3e-3, 32  # of a student's training; it is drawn from in 128 sub-steps


# --- ten dimensions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """Points (N, 10, 1, 1) of a data set to train on; the mixture fitted to them, and p(k | x) of each (N, 8).

    count: points of a draw for a score.
    """

    name: str
    x: Tensor
    mixture: ModeMixture
    shares: Tensor
    count: int
    seed: int

    def fresh(self, part: str, draw: int) -> Tensor:
        """Other points of the data."""
        return curved_modes(DISTANCES[self.name], self.count, generator(part, str(draw)))

    def again(self, draw: int) -> Tensor:
        """Training points, drawn with replacement."""
        return self.x[torch.randint(len(self.x), (self.count,), generator=generator(self.seed, "again", str(draw)))]

    def modes_of(self, rows: Tensor, stream: torch.Generator) -> Tensor:
        """The modes of points, drawn from what the mixture says of them."""
        return draw_modes(
            torch.arange(MODES).expand(len(rows), -1), self.shares[rows], torch.rand(len(rows), generator=stream)
        )


@dataclass(frozen=True)
class Start:
    """What samples are drawn from: modes (N,), their statistics, and noise (N, 10, 1, 1)."""

    modes: Tensor
    own: ModeStatistics
    noise: Tensor


def world(name: str, points: int, count: int, seed: int) -> World:
    x = curved_modes(DISTANCES[name], points, generator("training"))
    return World(name, x, *mixture_source.fit(x, seed), count, seed)


def start(data: World, draw: int) -> Start:
    stream = generator(data.seed, "draw", str(draw))
    modes = data.mixture.draw(data.count, stream)
    return Start(modes, data.mixture.at(modes), torch.randn(data.count, *data.x.shape[1:], generator=stream))


Sampler = Callable[[int], Tensor]
"""The points (N, 10, 1, 1) of a draw."""


def distance(data: World, sample: Sampler) -> float:
    """Squared sliced W2 of samples to held-out points, mean over draws of both."""
    draws = range(DRAWS)
    return mean(sliced_distance(sample(n), data.fresh("held out", n), generator("directions")) for n in draws)


def point_network(components: int, conditioned: bool) -> PointNetwork:
    return PointNetwork(DIMENSIONS, WIDTH, DEPTH, components, frequencies=0, modes=MODES if conditioned else 0)


def teacher_of(data: World, flow: str, steps: int, folder: Path) -> PointNetwork:
    """A teacher, trained now unless it has been."""
    method, conditioned = FLOWS[flow]
    file = folder / f"{data.name}-{flow}-{len(data.x)}-{steps}-{data.seed}.safetensors".replace(" ", "-")
    if not file.exists():
        write_tensors(
            file, mixture_source.train(flow, data.x, data.shares, data.mixture, steps, data.seed).state_dict()
        )
    network = point_network(COMPONENTS if method.objective.mixture else 0, conditioned)
    network.load_state_dict(read_tensors(file))
    return network.eval().requires_grad_(False)


def student_method(teacher: Method, conditioned: bool, evaluations: int) -> Method:
    """Its components are those of a mixture teacher, or as many; its segments are even before the teacher's shift."""
    segments = Segments(evaluations, shift=teacher.times.shift)
    objective = Imitation(segments, components=COMPONENTS, substeps=SUBSTEPS)
    return taught_by(teacher, objective, whitened=conditioned)


def train_student(data: World, flow: str, teacher: PointNetwork, evaluations: int, steps: int) -> PointNetwork:
    """A student that begins as its teacher, and sees points of the data."""
    taught, conditioned = FLOWS[flow]
    method = student_method(taught, conditioned, evaluations)
    torch.manual_seed(data.seed)
    network, stream = point_network(COMPONENTS, conditioned), generator(data.seed, "student")
    before = HeadShape(DIMENSIONS, COMPONENTS if taught.objective.mixture else 0)
    begin_as(network, teacher.state_dict(), before, HeadShape(DIMENSIONS, COMPONENTS), stream)

    def losses() -> Tensor:
        rows = torch.randint(len(data.x), (BATCH,), generator=stream)
        modes = data.modes_of(rows, stream)
        own, shape = data.mixture.at(modes), (DIMENSIONS, 1, 1)
        draws = method.draw(BATCH, shape, stream)
        velocity = velocity_model(method.in_flow(partial(teacher, modes=modes), own))
        pairs = method.pair(data.x[rows], draws.noise, own)
        return method.taught(velocity).loss(method.in_flow(partial(network, modes=modes), own), pairs, draws)

    return optimise(network, losses, RATE, steps)


@torch.inference_mode()
def draw_student(method: Method, predict: Predict, own: ModeStatistics, noise: Tensor) -> Tensor:
    """Points of a student from given modes and noise, by the evaluations that it was made for."""
    assert isinstance(method.objective, Imitation)
    segments = method.objective.segments
    solver = PolicySolver(shift=segments.shift, substeps=128)
    end = integrate(solver, method.in_flow(predict, own), method.start(noise, own), segments.grid())
    return method.finish(end, own)


def by_teacher(flow: str, teacher: PointNetwork, starts: Sequence[Start], evaluations: int) -> Sampler:
    method = FLOWS[flow][0]

    def sample(draw: int) -> Tensor:
        given = starts[draw]
        return mixture_source.draw(method, partial(teacher, modes=given.modes), given.own, given.noise, evaluations)

    return sample


def by_student(
    data: World, flow: str, teacher: PointNetwork, starts: Sequence[Start], evaluations: int, steps: int
) -> Sampler:
    """Of a student that is trained now."""
    network, method = train_student(data, flow, teacher, evaluations, steps), student_method(*FLOWS[flow], evaluations)

    def sample(draw: int) -> Tensor:
        given = starts[draw]
        return draw_student(method, partial(network, modes=given.modes), given.own, given.noise)

    return sample


def point_scores(name: str, seed: int, setting: Setting, folder: Path) -> dict[str, dict[str, float]]:
    """The distances of each teacher and its students by evaluations, and that of other data: what is there is read."""
    file = folder / f"{name}-{setting.points}-{seed}-{setting.teacher}-{setting.student}.json"
    table: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}
    data = world(name, setting.points, setting.count, seed)
    starts = [start(data, draw) for draw in range(DRAWS)]

    def keep(row: str, column: int, sampler: Callable[[], Sampler]) -> None:
        if str(column) not in table.setdefault(row, {}):
            table[row][str(column)] = distance(data, sampler())
            with written_aside(file) as part:
                part.write_text(json.dumps(table))

    keep("data", 0, lambda: partial(data.fresh, "other"))
    keep("training points", 0, lambda: data.again)
    for label in setting.teachers:
        flow = TEACHERS[label]
        teacher = teacher_of(data, flow, setting.teacher, folder)
        for count in EVALUATIONS:
            keep(label, count, partial(by_teacher, flow, teacher, starts, count))
        for count in setting.students:
            keep(f"student of {label}", count, partial(by_student, data, flow, teacher, starts, count, setting.student))
    return table


# --- digits -----------------------------------------------------------------------------------------------------------

MODES_OF_DIGITS = 128
DIGITS = {
    "flow matching": digits_study.Method("flow matching", "fm", 0),
    "MM-FM": digits_study.Method("MM-FM", "fm", MODES_OF_DIGITS),
    "union": digits_study.Method("union", "gm-kl", MODES_OF_DIGITS),
}


def digit_scores(digits: Digits, seed: int, setting: Setting) -> dict[str, dict[str, float]]:
    """The Fréchet distances of each teacher and its students by evaluations, and that of real digits."""
    budget = digits_study.Setting(setting.teacher, BATCH // 4, 1, setting.count, (MODES_OF_DIGITS,), (), ())
    table: dict[str, dict[str, float]] = {}
    for label in setting.teachers:
        method = DIGITS[label]
        run = trained(digits, digits_study.training(digits, method, budget, seed))
        solver = "gm-ode" if method.objective == "gm-kl" else "euler"
        sampling = digits_study.sampler(method, solver, setting.count, seed)
        table[label] = {}
        for count in EVALUATIONS:
            one = score(digits, run, changed(sampling, {"steps": count}))
            table[label][str(count)] = one.distance
            table["data"] = {"0": one.floor}
        for count in setting.students:
            gmm = mixture(digits, method.modes, seed) if method.modes else None
            folder = student(digits, run, imitation(count, setting.student, BATCH // 4, gmm, seed))
            one = score(digits, folder, changed(sampling, {"solver": None, "order": None}))
            table.setdefault(f"student of {label}", {})[str(count)] = one.distance
    return table


# --- both -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """Steps of a teacher's and of a student's training, points or digits of a score, evaluations of the students.

    points: to train on; of digits there are as many as there are.
    """

    teacher: int
    student: int
    count: int
    points: int = 0
    teachers: tuple[str, ...] = tuple(TEACHERS)
    students: tuple[int, ...] = STUDENTS


FLOORS = {"data": "grey", "training points": "black"}
"""The rows of what stands in the place of samples, and the colours of their lines in a plot."""
POINTS, POINTS_QUICK = Setting(10_000, 3000, 20_000, 20_000), Setting(3, 3, 100, 100, students=(1, 2))
OF_DIGITS, OF_DIGITS_QUICK = Setting(1500, 1500, SAMPLES), Setting(3, 3, 50, students=(1,))


def report(title: str, seeds: Sequence[dict[str, dict[str, float]]], path: Path, digits: int) -> None:
    """Print mean and deviation over the seeds, and draw them into ``path``. digits: after the point."""
    floors = {row: mean(table[row]["0"] for table in seeds) for row in FLOORS if row in seeds[0]}
    rows = {
        row: {int(n): [table[row][n] for table in seeds if n in table.get(row, {})] for n in seeds[0][row]}
        for row in seeds[0]
        if row not in FLOORS
    }
    columns = sorted({n for scores in rows.values() for n in scores})

    def cell(values: list[float]) -> str:
        spread = f" ±{stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{mean(values):.{digits}f}{spread}" if values else ""

    print_table(
        f"{title}, by network evaluations ({', '.join(f'{row} {value:.{digits}f}' for row, value in floors.items())})",
        ("", *map(str, columns)),
        [(row, *(cell(scores.get(n, [])) for n in columns)) for row, scores in rows.items()],
    )
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="network evaluations", ylabel=title)
    for row, scores in rows.items():
        style = "dashed" if row.startswith("student") else "solid"
        means = [mean(values) for values in scores.values()]
        spreads = [stdev(values) if len(values) > 1 else 0.0 for values in scores.values()]
        axes.errorbar(list(scores), means, spreads, label=row, linestyle=style, marker=".", capsize=2)
    for row, value in floors.items():
        axes.axhline(value, color=FLOORS[row], linestyle="dotted", label=row)
    axes.set_xticks(columns, [str(n) for n in columns], minor=False)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("points", "digits"))
    parser.add_argument("folder", type=Path, nargs="?", default=Path("students"), help="runs, scores and pictures")
    parser.add_argument("--quick", action="store_true", help="a miniature, whose figures mean nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), help="of networks, mixtures and samples")
    parser.add_argument("--data", choices=DISTANCES, help="one data set of points instead of both")
    parser.add_argument("--training-points", type=int, help="instead of 20,000, in ten dimensions")
    parser.add_argument("--teacher-steps", type=int, help="of a teacher's training")
    parser.add_argument("--student-steps", type=int, help="of a student's training")
    parser.add_argument("--teachers", nargs="+", choices=TEACHERS, default=tuple(TEACHERS), help="instead of all")
    parser.add_argument("--students", nargs="+", type=int, help="evaluations of the students")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    points = options.what == "points"
    usual = (POINTS_QUICK if options.quick else POINTS) if points else OF_DIGITS_QUICK if options.quick else OF_DIGITS
    setting = Setting(
        options.teacher_steps or usual.teacher,
        options.student_steps or usual.student,
        usual.count,
        options.training_points or usual.points,
        tuple(options.teachers),
        tuple(options.students or usual.students),
    )
    if points:
        for name in [options.data] if options.data else DISTANCES:
            tables = [point_scores(name, seed, setting, options.folder) for seed in options.seeds]
            report(f"{name}: squared sliced W2", tables, options.folder / f"{name.lower()}.png", 5)
    else:
        data = prepare(options.folder, "test")
        tables = [digit_scores(data, seed, setting) for seed in options.seeds]
        report("Fréchet distance to held-out digits", tables, options.folder / "digits.png", 2)


if __name__ == "__main__":
    main()
