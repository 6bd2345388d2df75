"""The report: what it collects, that its figures are those of the files, and how it names what is wrong."""

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from gmtool.artifacts.manifest import parse_manifest
from gmtool.cli.app import main
from gmtool.errors import UserError
from gmtool.progress import Progress
from gmtool.stages.report.collection import collect
from gmtool.stages.report.config import ReportConfig
from gmtool.stages.report.provenance import trace
from gmtool.stages.report.run import report

FD = "frechet_distance"


class Notes(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


class Cells(HTMLParser):
    """The exact numbers in the tables of scores: row's name -> metric -> number; and all texts and attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: dict[str, dict[str, float]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._row = self._metric = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag in ("tr", "tfoot"):
            self._row = given.get("data-name") or tag
        if tag == "td":
            self._metric = given.get("data-metric") or ""
        if tag == "data" and self._metric:
            self.rows.setdefault(self._row, {}).setdefault(self._metric, float(given["value"] or "nan"))

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(*paths: Path, page: Path, **settings: object) -> str:
    report([*paths, page], ReportConfig(**settings), Progress())  # type: ignore[arg-type]
    return page.read_text("utf-8")


def data_of(page: str) -> dict:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert match is not None
    return json.loads(match[1])


@pytest.fixture(scope="module")
def page(experiments: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(experiments, page=tmp_path_factory.mktemp("page") / "report.html")


# --- what is found ----------------------------------------------------------------------------------------------------


def test_what_is_in_a_folder_is_found(experiments: Path) -> None:
    collection = collect([experiments])
    assert {(artifact.kind, artifact.name) for artifact in collection.artifacts} == {
        *(("run", name) for name in ("gmflow", "union")),
        *(("samples", f"{name}-{steps}") for name in ("gmflow", "union") for steps in (1, 2)),
        *(("gmm", "gmm.h5"), ("latents", "latents.h5"), ("sweep", "sweep")),
    }
    assert collection.left_out == ()
    assert all(artifact.scores is not None for artifact in collection.of("samples"))


def test_a_path_that_is_named_twice_is_shown_once(experiments: Path) -> None:
    collection = collect([experiments / "gmflow", experiments / "union" / ".." / "gmflow", experiments])
    assert len(collection.of("run")) == 2
    assert collection.artifacts[0].name == "gmflow"


@pytest.mark.parametrize("paths", [["gmflow"], ["gmflow", "union-2"], ["latents.h5"], ["gmm.h5"], ["sweep"]])
def test_any_artifacts_make_a_page(experiments: Path, tmp_path: Path, paths: list[str]) -> None:
    page = page_of(*(experiments / path for path in paths), page=tmp_path / "report.html")
    assert all(f">{path}<" in page or f" {path}" in page for path in paths)
    assert ("<h2>Training</h2>" in page) == ("gmflow" in paths)
    assert ("<h2>Sweeps</h2>" in page) == ("sweep" in paths)


# --- provenance -------------------------------------------------------------------------------------------------------


def edges(root: Path, *paths: Path) -> set[tuple[str, str]]:
    """What was made from what, by kind and path in ``root``."""
    graph = trace(collect(paths))
    names = {key: f"{node.kind} {os.path.relpath(node.path, root)}" for key, node in graph.nodes.items()}
    return {(names[one], names[other]) for one, other in graph.edges}


def test_what_was_made_from_what(experiments: Path) -> None:
    links = edges(experiments, experiments)
    assert any(one.startswith("images") and other == "latents latents.h5" for one, other in links)
    assert {
        ("latents latents.h5", "gmm gmm.h5"),
        ("latents latents.h5", "run gmflow"),
        ("gmm gmm.h5", "run union"),
        ("run union", "samples union-2"),
        ("samples union-2", "scores union-2/metrics.json"),
    } <= links
    assert ("latents latents.h5", "run union") not in links  # which the mixture implies


def test_inputs_that_are_still_there_are_followed(experiments: Path) -> None:
    graph = trace(collect([experiments / "union-2"]))
    assert [node.kind for node in graph.nodes.values() if node.given] == ["samples", "scores"]
    assert edges(experiments, experiments / "union-2") >= {
        ("gmm gmm.h5", "run union"),
        ("run union", "samples union-2"),
    }


def test_what_is_gone_or_has_changed_is_told(experiments: Path, tmp_path: Path) -> None:
    root = tmp_path / "moved"
    shutil.copytree(experiments / "union-2", root / "union-2")
    record = json.loads((root / "union-2/sampling.json").read_text())
    del record["checksum"]
    for entry in record["inputs"]:
        entry["path"] = str(experiments / "gmflow" if entry["role"] == "run" else root / "nowhere.h5")
    (root / "union-2/sampling.json").write_text(json.dumps(record))
    notes = {node.kind: node.note for node in trace(collect([root])).nodes.values()}
    assert notes["run"] == "changed since"
    assert notes["latents"] == "no longer there"


def test_moved_artifacts_know_each_other_by_their_content(experiments: Path, tmp_path: Path) -> None:
    shutil.copytree(experiments, tmp_path / "moved")
    assert ("run union", "samples union-1") in edges(tmp_path / "moved", tmp_path / "moved")


@pytest.mark.slow
def test_commands_can_be_typed(experiments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And make of the same inputs what is recorded: the settings that they plan are those of the record."""
    import shlex

    for node in trace(collect([experiments])).nodes.values():
        if node.given and node.kind in ("run", "samples", "gmm", "scores"):
            words = shlex.split(node.command)
            assert words[0] == "gmtool"
            words = [str(tmp_path / f"new{Path(word).suffix}") if word == node.path else word for word in words]
            assert main([*words[1:], "--dry-run"]) == 0, capsys.readouterr().err
    record = parse_manifest((experiments / "union/config.json").read_bytes(), experiments)
    assert record.config["source"] == "gmm"
    assert "--source gmm" in trace(collect([experiments])).nodes[f"run {experiments / 'union'}"].command


# --- the page's figures are the files' --------------------------------------------------------------------------------


def test_scores_are_those_of_the_files(experiments: Path, page: str) -> None:
    rows = Cells(page).rows
    for name in ("gmflow-1", "gmflow-2", "union-1", "union-2"):
        figures = json.loads((experiments / name / "metrics.json").read_text())["figures"]
        assert rows[name] == {figure["metric"]: figure["generated"]["value"] for figure in figures}


def test_floors_are_those_of_the_files(experiments: Path, page: str) -> None:
    figures = json.loads((experiments / "union-2/metrics.json").read_text())["figures"]
    charts = data_of(page)["charts"]["scores-0"]["metrics"]
    for figure in figures:
        if figure["real"] is not None:
            floor = {"name": "real images in their place", "y": figure["real"]["value"]}
            assert charts[figure["metric"]]["floors"] == [floor]


def test_plotted_scores_are_those_of_the_files(experiments: Path, page: str) -> None:
    lines = {curve["name"]: curve for curve in data_of(page)["charts"]["scores-0"]["axes"]["evaluations"]["lines"]}
    assert set(lines) == {"gmflow", "union"}
    for run, line in lines.items():
        assert line["x"] == [1, 2]
        for index, steps in enumerate((1, 2)):
            figures = json.loads((experiments / f"{run}-{steps}/metrics.json").read_text())["figures"]
            assert {name: values[index] for name, values in line["values"].items()} == {
                figure["metric"]: figure["generated"]["value"] for figure in figures
            }


def test_curves_are_those_of_the_files(experiments: Path, page: str) -> None:
    charts = [chart for key, chart in data_of(page)["charts"].items() if key.startswith("training")]
    shown = {chart["title"] or chart["yLabel"]: chart for chart in charts}
    assert {"loss", "gradient norm", "learning rate", "images/s", "second quarter"} <= set(shown)
    for run in ("gmflow", "union"):
        records = [json.loads(line) for line in (experiments / run / "metrics.jsonl").read_text().splitlines()]
        series = next(curve for curve in shown["loss"]["series"] if curve["name"] == run)
        assert series["x"] == [record["step"] for record in records]
        assert series["y"] == [record["loss"] for record in records]


def test_sweeps_are_those_of_the_files(experiments: Path, page: str) -> None:
    sweep = json.loads((experiments / "sweep/sweep.json").read_text())["details"]
    rows = Cells(page).rows
    for number, point in enumerate(sweep["points"], 1):
        assert rows[f"point {number}"][FD] == point["figures"][0]["generated"]["value"]
    axes = data_of(page)["charts"]["sweep-0"]["axes"]
    assert {name: axis["label"] for name, axis in axes.items()} == {
        "evaluations": "network evaluations per sample",
        "--guidance-scale": "guidance scale",
    }
    line = next(curve for curve in axes["evaluations"]["lines"] if curve["name"] == "union, guidance scale 0.3")
    assert line["x"] == [2, 8]
    assert line["values"][FD] == pytest.approx([1.305, 0.555])  # means of two seeds
    assert line["low"][FD] == pytest.approx([1.3, 0.55]) and line["high"][FD] == pytest.approx([1.31, 0.56])
    along = next(curve for curve in axes["--guidance-scale"]["lines"] if curve["name"] == "union, steps 4")
    assert along["x"] == [0.1, 0.3]


def test_the_best_are_marked(experiments: Path, page: str) -> None:
    values = {
        name: json.loads((experiments / name / "metrics.json").read_text())["figures"][0]["generated"]["value"]
        for name in ("gmflow-1", "gmflow-2", "union-1", "union-2")
    }
    best = min(values, key=values.__getitem__)
    marked = re.findall(rf'<tr data-name="([^"]*)"(?:(?!</tr>).)*?<td data-metric="{FD}" class="best"', page, re.S)
    assert marked[0] == best


def test_settings_that_differ_come_first(page: str) -> None:
    table = page.split('<table class="settings">')[1].split("</table>")[0]
    assert re.findall(r"<code>(--[a-z-]+)</code>", table) == ["--source", "--coupling", "--mode-mean"]
    assert "--batch-size" in page.split('<dl class="common">')[1].split("</dl>")[0]


# --- the page itself --------------------------------------------------------------------------------------------------


def test_the_page_is_one_file(page: str) -> None:
    for tag, given in Cells(page).tags:
        for name in ("src", "href"):
            assert (given.get(name) or "#").startswith(("data:", "#")), (tag, given)
        assert tag not in ("link", "iframe", "object", "base")
    assert "http" not in re.sub(r"http-equiv|http://www.w3.org/2000/svg", "", page)


def test_pictures_have_alternatives(page: str) -> None:
    pictures = [given for tag, given in Cells(page).tags if tag == "img" and given.get("id") != "viewer-image"]
    assert len(pictures) >= 4 + 2 + 4  # grids, real images, previews
    assert all(given["alt"] for given in pictures)
    plots = [given for tag, given in Cells(page).tags if given.get("role") == "img"]
    assert plots and all(given["aria-label"] for given in plots)


def test_the_same_artifacts_make_the_same_page(experiments: Path, page: str, tmp_path: Path) -> None:
    assert page_of(experiments, page=tmp_path / "report.html") == page


def test_hostile_names(experiments: Path, tmp_path: Path) -> None:
    """No name becomes a tag, ends a script or an attribute."""
    root = tmp_path / 'x"><script>alert(1)<'
    names = ["</script><script>alert(1)</script>".replace("/", "∕"), "<img src=x onerror=alert(1)>", "a'b\"c&amp;"]
    for name, run in zip(names, ("gmflow", "union", "gmflow"), strict=True):
        shutil.copytree(experiments / run, root / name)
        shutil.copytree(experiments / f"{run}-1", root / f"{name}-1")
    page = page_of(root, page=tmp_path / "report.html", title="</title><script>alert(2)</script>")
    cells = Cells(page)
    assert sum(tag == "script" for tag, _ in cells.tags) == 2  # the data and the page's own
    assert not any(name.startswith("on") for _, given in cells.tags for name in given)
    assert not any(tag == "img" and given.get("src") == "x" for tag, given in cells.tags)
    assert names[1] in cells.text and names[2] in cells.text
    assert {curve["name"] for curve in data_of(page)["charts"]["training-0-0"]["series"]} == set(names)


@pytest.mark.slow
def test_large_pictures_are_made_smaller(experiments: Path, tmp_path: Path) -> None:
    import numpy as np

    root = tmp_path / "large"
    shutil.copytree(experiments, root)
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    for name in ("gmflow-1", "union-1"):
        Image.fromarray(np.roll(noise, len(name), axis=0)).save(root / name / "grid.png")
    page_of(root, page=tmp_path / "report.html", max_size=1.0)
    assert (tmp_path / "report.html").stat().st_size <= 1_000_000
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count("of 900 px") == 2
    assert page.count("data:image/webp") == 2  # the small ones stay as they are


# --- what is wrong is said in one line --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("union-2/metrics.json", "{", "gmtool eval"),
        ("union-2/metrics.json", '{"figures": []}', "gmtool eval"),
        ("union-2/metrics.json", "[1]", "gmtool eval"),
        ("union-2/grid.png", "not a picture", "is damaged"),
        ("union-2/sampling.json", "{}", "no readable gmtool manifest"),
        ("union/config.json", "{", "no readable gmtool manifest"),
        ("union/metrics.jsonl", "one\ntwo\n", "no line holds figures"),
        ("union/previews/step-00000002.png", "", "is damaged"),
        ("gmm.png", "?", "is damaged"),
        ("gmm.h5", "?", "not a whole HDF5 file"),
        ("sweep/sweep.json", "{}", "no readable gmtool manifest"),
        ("stranger.h5", "?", "not a whole HDF5 file"),
    ],
)
def test_what_is_damaged_in_a_folder_is_left_out(
    experiments: Path, tmp_path: Path, name: str, damage: str, words: str
) -> None:
    root = tmp_path / "damaged"
    shutil.copytree(experiments, root, ignore=shutil.ignore_patterns("images"))
    (root / name).write_text(damage)
    notes = Notes()
    report([root, tmp_path / "report.html"], ReportConfig(), notes)
    lines = [line for line in notes.lines if line.startswith("left out: ")]
    assert len(lines) == 1 and name in lines[0] and words in lines[0] and "\n" not in lines[0]
    page = Cells((tmp_path / "report.html").read_text("utf-8"))
    assert lines[0].removeprefix("left out: ") in page.text
    assert "gmflow-2" in page.rows


def test_a_line_that_was_cut_short_is_passed_over(experiments: Path, tmp_path: Path) -> None:
    shutil.copytree(experiments / "union", tmp_path / "union")
    with (tmp_path / "union/metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": NaN}\n{"step": 5, "lo')
    series = data_of(page_of(tmp_path / "union", page=tmp_path / "report.html"))["charts"]["training-0-0"]["series"]
    assert series[0]["x"] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: root / "nowhere", "does not exist"),
        (lambda root: root / "empty", "holds nothing of gmtool's"),
        (lambda root: root / "notes.txt", "is not a whole HDF5 file"),
        (lambda root: root / "damaged", "no readable gmtool manifest"),
    ],
)
def test_what_is_named_must_be_of_gmtool(tmp_path: Path, make: object, words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/sampling.json").write_text("{")
    path = make(tmp_path)  # type: ignore[operator]
    with pytest.raises(UserError, match=words) as raised:
        report([path, tmp_path / "report.html"], ReportConfig(), Progress())
    assert str(path) in str(raised.value)
    assert not (tmp_path / "report.html").exists()


def test_scores_of_other_samples_are_left_out(experiments: Path, tmp_path: Path) -> None:
    shutil.copytree(experiments / "union-1", tmp_path / "union-1")
    shutil.copy(experiments / "union-2/metrics.json", tmp_path / "union-1/metrics.json")
    assert "about other samples" in collect([tmp_path]).left_out[0]


def test_nothing_of_the_users_is_replaced(experiments: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("<html>my own page</html>")
    with pytest.raises(UserError, match=r"report\.html exists and is no page of gmtool report"):
        report([experiments / "union", page], ReportConfig(), Progress())
    assert page.read_text() == "<html>my own page</html>"
    page.unlink()
    for _ in range(2):  # a page of its own is
        report([experiments / "union", page], ReportConfig(), Progress())
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_page_that_is_too_small(experiments: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--max-size"):
        report([experiments, tmp_path / "report.html"], ReportConfig(max_size=0.01), Progress())


# --- as it is typed ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_as_it_is_typed(
    experiments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(experiments, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    assert main(["report", "union/", "union-1/", "shown.html"]) == 0
    assert "wrote shown.html: 2 artifacts, " in capsys.readouterr().out
    assert main(["report", "union/", "shown.html"]) == 0
    assert "wrote shown.html: 1 artifact, " in capsys.readouterr().out
    assert main(["report"]) == 0  # all that is here
    assert "wrote report.html: 9 artifacts, " in capsys.readouterr().out
    assert main(["report", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "Would show 9 artifacts on one page" in shown and "report.html" in shown
    assert main(["report", "nowhere"]) == 2
    assert capsys.readouterr().err == (
        "gmtool: error: nowhere does not exist: give what gmtool wrote, or a folder that holds it\n"
    )
