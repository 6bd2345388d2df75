"""The methods on real colour pictures of many positions: what digits and ten dimensions hide.

Crops of photographs (`photographs`), 48 channels at 64 positions, the photograph as class. Flow matching, GMFlow, MM-FM
and the union are trained with the same network and budget, and drawn by every solver that suits them with 1 ... 50
network evaluations, at several points of the training; there MM-FM and the union teach students of few evaluations, for
as many steps. Scores: Fréchet distance, precision and recall to held-out parts
of the photographs by the tokenizer's descriptors, beside the distance of crops that were trained on. Left in the
folder: `results.json`, `results.md` (mean and standard deviation over the seeds), `results.png`, and `grid-STEPS.png`.

    python examples/pictures_study.py                             # hours on an idle core; may be stopped, and resumes
    python examples/pictures_study.py --seeds 0 --budgets 500     # a first look
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from digits import Digits, budget, imitation, mixture, student
from photographs import label_strips, prepare
from PIL import Image

from gmtool.artifacts.files import written_aside
from gmtool.artifacts.samples import open_samples
from gmtool.console import ConsoleProgress
from gmtool.settings import changed, make
from gmtool.stages.evaluate.config import EvaluateConfig
from gmtool.stages.evaluate.run import evaluate
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.sample.run import sample
from gmtool.stages.train.run import train

METHODS = {"flow matching": ("fm", 0), "GMFlow": ("gm-kl", 0), "MM-FM": ("fm", 128), "union": ("gm-kl", 128)}
"""The objective of each method, and the modes of its source, 0 for a Gaussian one."""
ALL, SOME, PAIRS = (1, 2, 4, 6, 10, 50), (2, 4, 6), (4, 6, 10)
SOLVERS = {
    "fm": {"euler": ALL, "heun": PAIRS},
    "gm-kl": {"gm-ode 1": ALL, "gm-ode 2": ALL, "gm-sde 1": SOME, "gm-sde 2": ALL, "euler": (1, *SOME), "heun": PAIRS},
}
"""The network evaluations of each solver and order; those on a velocity follow a mixture's mean."""
TEACHERS = ("MM-FM", "union")
"""The methods that students learn from, as one more solver: "student"."""
DASH = {
    "euler": ":",
    "heun": (0, (6, 4)),
    "gm-ode 1": "--",
    "gm-ode 2": "-",
    "gm-sde 1": (0, (1, 4)),
    "gm-sde 2": "-.",
    "student": (0, (1, 1)),
}
"""How the plot draws the line of a solver."""
SHOWN = (1, 4, 10)
"""The evaluations whose samples a grid shows."""


@dataclass(frozen=True)
class Draw:
    """A method, the training steps that it has had, and how samples are drawn from it."""

    method: str
    seed: int
    steps: int
    solver: str
    evaluations: int

    def kept(self, data: Digits, suffix: str) -> Path:
        """Where its score or its picture is kept."""
        name = f"{self.method} {self.seed} {self.steps} {self.solver} {self.evaluations}{suffix}"
        return data.root / "scores" / name.lower().replace(" ", "-")


@dataclass(frozen=True)
class Score:
    """The figures of the samples of a draw; floor: the Fréchet distance of as many crops that were trained on."""

    draw: Draw
    distance: float
    precision: float
    recall: float
    floor: float


def trained(data: Digits, method: str, seed: int, steps: int, batch: int) -> Path:
    """The run of a method with a checkpoint at ``steps``. The rate is constant: a long run passes through a short."""
    run = data.root / "runs" / f"{method.lower().replace(' ', '-')}-{seed}"
    if not (run / "checkpoints" / f"step-{steps:08d}").exists():
        objective, modes = METHODS[method]
        settings = {"objective": objective, "source": "gaussian", "batch_size": batch, "lr_knots": None}
        settings |= {"lr_curve": "linear", "save_every": min(steps, 500), "keep_every": min(steps, 500)}
        if modes:
            settings |= {"source": "gmm", "coupling": "mode", "gmm": mixture(data, modes, seed)}
        train(data.latents, run, changed(budget(steps, seed), settings), ConsoleProgress())
    return run


def taught(data: Digits, teacher: Path, draw: Draw, batch: int) -> Path:
    """The student of a teacher as it is after ``draw.steps``, trained for as many."""
    gmm = mixture(data, METHODS[draw.method][1], draw.seed)
    config = imitation(draw.evaluations, draw.steps, batch, gmm, draw.seed)
    return student(data, teacher, changed(config, {"teacher_checkpoint": draw.steps}))


def score(data: Digits, run: Path, draw: Draw, count: int) -> Score:
    """The score of ``count`` samples, drawn now unless they have been; one of each class is kept as a picture."""
    record = draw.kept(data, ".json")
    if not record.exists():
        name, _, order = draw.solver.partition(" ")
        chosen = {"solver": "policy" if name == "student" else name, "order": int(order) if order else None}
        chosen |= {
            "steps": draw.evaluations,
            "checkpoint": draw.steps,
            "num": count,
            "seed": draw.seed,
            "device": "cpu",
        }
        folder = data.root / "samples" / run.name
        sample(run, folder, make(SampleConfig, chosen), ConsoleProgress())
        scoring = {"reference": data.reference, "features": "tokenizer", "device": "cpu"}
        report = evaluate(folder, make(EvaluateConfig, scoring), ConsoleProgress())
        distance, precision, recall = (report.figure(metric) for metric in ("frechet_distance", "precision", "recall"))
        assert distance and distance.real and precision and recall  # the reference is of real images
        values = [figure.generated.value for figure in (distance, precision, recall)]
        record.parent.mkdir(exist_ok=True)
        Image.fromarray(np.hstack(open_samples(folder).images()[:11])).save(draw.kept(data, ".png"))
        shutil.rmtree(folder)
        with written_aside(record) as part:
            part.write_text(json.dumps(asdict(Score(draw, *values, distance.real.value))))
    values = json.loads(record.read_text())
    return Score(**{**values, "draw": draw})


Rows = dict[tuple[str, str], dict[int, list[Score]]]


def rows_of(scores: list[Score]) -> Rows:
    """Scores by method and solver, then by number of evaluations: one a seed."""
    rows: Rows = {}
    for score in scores:
        row = rows.setdefault((score.draw.method, score.draw.solver), {})
        row.setdefault(score.draw.evaluations, []).append(score)
    return rows


def cell(values: list[float]) -> str:
    """Mean and standard deviation over the seeds: '19.5 ±0.3'."""
    spread = f" ±{stdev(values):.2g}" if len(values) > 1 else ""
    return f"{mean(values):.3g}{spread}" if values else ""


def table(title: str, rows: Rows, figure: str) -> str:
    """A figure of the scores, by evaluations, in Markdown."""
    text = [f"**{title}**", "", f"| evaluations | {' | '.join(map(str, ALL))} |", "| --- " * (len(ALL) + 1) + "|"]
    for name, row in rows.items():
        cells = [cell([getattr(score, figure) for score in row.get(count, [])]) for count in ALL]
        text.append(f"| {', '.join(name)} | {' | '.join(cells)} |")
    return "\n".join([*text, "", ""])


def plot(by_steps: dict[int, Rows], floor: float, path: Path) -> None:
    """Distance against evaluations, a panel for each point of the training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 + 4 * len(by_steps), 5), layout="constrained")
    panels = figure.subplots(1, len(by_steps), sharey=True, squeeze=False)[0]
    for panel, (steps, rows) in zip(panels, by_steps.items(), strict=True):
        for (method, solver), row in rows.items():
            means = [mean(score.distance for score in row[count]) for count in row]
            look = {"marker": "o", "linestyle": DASH[solver], "color": f"C{list(METHODS).index(method)}"}
            panel.plot(list(row), means, label=f"{method}, {solver}", **look)
        panel.axhline(floor, color="grey", linewidth=1)
        panel.set(xscale="log", yscale="log", title=f"{steps} steps", xlabel="network evaluations")
        panel.set_xticks(ALL, [str(count) for count in ALL], minor=False)
    panels[0].set_ylabel("Fréchet distance")
    named = {line.get_label(): line for panel in panels for line in panel.lines if line.get_marker() == "o"}
    panels[-1].legend(
        named.values(), named.keys(), fontsize="x-small", handlelength=4, loc="upper left", bbox_to_anchor=(1, 1)
    )
    figure.savefig(path, dpi=110)


def report(data: Digits, scores: list[Score]) -> None:
    """Write tables, plot and grids of all scores."""
    (data.root / "results.json").write_text(json.dumps([asdict(score) for score in scores], indent=1))
    floor, by_steps, text = mean(score.floor for score in scores), {}, ""
    for steps in sorted({score.draw.steps for score in scores}):
        here = [score for score in scores if score.draw.steps == steps]
        by_steps[steps] = rows_of(here)
        seeds = sorted({score.draw.seed for score in here})
        text += table(f"{steps} steps, seeds {seeds}: distance (real crops: {floor:.3g})", by_steps[steps], "distance")
        text += table(f"{steps} steps: precision", by_steps[steps], "precision")
        text += table(f"{steps} steps: recall", by_steps[steps], "recall")
        shown = [score.draw for score in here if score.draw.seed == seeds[0] and score.draw.evaluations in SHOWN]
        strips = {f"{draw.method}, {draw.solver}: {draw.evaluations}": draw.kept(data, ".png") for draw in shown}
        label_strips(strips, data.root / f"grid-{steps}.png")
    (data.root / "results.md").write_text(text)
    plot(by_steps, floor, data.root / "results.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("pictures-study"), help="runs, scores, pictures")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), help="of networks, mixtures and samples")
    parser.add_argument("--budgets", type=int, nargs="+", default=(500, 1500, 4000), help="training steps, to draw at")
    parser.add_argument("--batch", type=int, default=32, help="images of a training step")
    parser.add_argument("--samples", type=int, default=660, help="of a score")
    parser.add_argument("--most", type=int, default=50, help="network evaluations of a sample, at most")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=tuple(METHODS), help="instead of all")
    parser.add_argument("--students", type=int, nargs="*", default=(1, 2), help="network evaluations of the students")
    options = parser.parse_args()
    data, scores = prepare(options.folder), []
    for seed, steps in itertools.product(options.seeds, options.budgets):
        for method in options.methods:
            run = trained(data, method, seed, steps, options.batch)
            for solver, counts in SOLVERS[METHODS[method][0]].items():
                draws = [Draw(method, seed, steps, solver, count) for count in counts if count <= options.most]
                scores += [score(data, run, draw, options.samples) for draw in draws]
            for count in options.students if method in TEACHERS else ():
                draw = Draw(method, seed, steps, "student", count)
                scores.append(score(data, taught(data, run, draw, options.batch), draw, options.samples))
        report(data, scores)


if __name__ == "__main__":
    main()
