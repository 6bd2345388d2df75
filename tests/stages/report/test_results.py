"""Likelihoods, reconstructions, decoders, and samples of several numbers on the page."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from test_report import Cells, data_of, edges, page_of

from gmtool.artifacts.manifest import parse_manifest
from gmtool.cli.app import main
from gmtool.evaluation.extractors import ExtractorSettings
from gmtool.progress import Progress
from gmtool.settings import make
from gmtool.stages.evaluate.config import EvaluateConfig
from gmtool.stages.evaluate.run import evaluate
from gmtool.stages.report.collection import collect
from gmtool.stages.report.provenance import trace
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.sample.run import sample


@pytest.fixture(scope="module")
def page(results: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(results, page=tmp_path_factory.mktemp("page") / "report.html")


@pytest.mark.slow
def test_likelihoods_are_those_of_the_files(results: Path, page: str) -> None:
    rows = Cells(page).rows
    values = {}
    for run in ("gmflow", "union"):
        record = parse_manifest((results / f"{run}-likelihood.json").read_bytes(), results)
        values[run] = record.details["latents"][0]
        shown = rows[f"{run}-likelihood.json"]
        assert shown["latents, nats per dimension"] == values[run]
        assert shown["velocity over time, nats per dimension"] == record.details["velocity"][0]
        assert [used.role for used in record.inputs] == ["run", "latents"]
    section = page.split('id="likelihood"')[1].split("</section>")[0]
    best = r'data-name="(\w+)-likelihood.json"(?:(?!</tr>).)*?<td data-metric="latents,[^"]*" class="best"'
    assert re.findall(best, section, re.S) == [min(values, key=values.__getitem__)]
    assert "upper bound" in section and "exact but for the solver" in section


@pytest.mark.slow
def test_reconstructions_are_those_of_the_files(results: Path, page: str) -> None:
    cells = Cells(page)
    for name in ("by-decoder", "by-pixels"):
        details = json.loads((results / name / "reconstruction.json").read_text())["details"]
        assert cells.rows[name] == {
            "PSNR (dB)": details["qualities"]["psnr"]["mean"],
            "SSIM": details["qualities"]["ssim"]["mean"],
            "L1 of [0, 1]": details["qualities"]["l1"]["mean"],
            "Fréchet distance, tokenizer": details["distances"][0]["value"],
        }
    pictures = [given["alt"] for tag, given in cells.tags if tag == "img" and given.get("alt")]
    assert sum("Pairs of by-decoder" in alt for alt in pictures) == 2
    assert "2 sets of reconstructions" in cells.text and "2 likelihoods" in cells.text


@pytest.mark.slow
def test_a_decoder_has_curves_previews_and_settings(results: Path, page: str) -> None:
    charts = data_of(page)["charts"]
    held_out = next(chart for chart in charts.values() if chart.get("yLabel") == "held out psnr")
    records = [json.loads(line) for line in (results / "decoder/metrics.jsonl").read_text().splitlines()]
    (line,) = held_out["series"]
    assert line["name"] == "decoder" and line["x"] == [1, 2]
    assert line["y"] == [record["held_out_psnr"] for record in records if "held_out_psnr" in record]
    assert "A grid of samples of decoder after 2 training steps" in page or "after 2 training steps" in page
    assert "train-decoder" in page.split('id="settings"')[1]


@pytest.mark.slow
def test_where_they_come_from(results: Path) -> None:
    assert {
        ("run union", "likelihood union-likelihood.json"),
        ("decoder decoder", "reconstruction by-decoder"),
    } <= edges(results, results)
    for node in trace(collect([results])).nodes.values():
        if node.given and node.kind in ("likelihood", "reconstruction"):
            words = shlex.split(node.command)
            assert words[0] == "gmtool" and main([*words[1:], "--dry-run"]) == 0, node.command
    likelihood = trace(collect([results / "union-likelihood.json"]))
    assert [node.kind for node in likelihood.nodes.values() if node.given] == ["likelihood"]
    assert main(["inspect", str(results / "by-decoder")]) == 0
    assert main(["inspect", str(results / "gmflow-likelihood.json")]) == 0


@pytest.mark.slow
def test_damaged_results_are_left_out(results: Path, tmp_path: Path) -> None:
    shutil.copy(results / "union-likelihood.json", tmp_path)
    shutil.copytree(results / "by-pixels", tmp_path / "by-pixels")
    for path in (tmp_path / "union-likelihood.json", tmp_path / "by-pixels/reconstruction.json"):
        record = json.loads(path.read_text())
        del record["checksum"], record["details"]["count"]
        path.write_text(json.dumps(record))
    page = page_of(tmp_path, page=tmp_path / "report.html")
    assert "run gmtool likelihood again" in page and "run gmtool reconstruct again" in page
    assert 'id="likelihood"' not in page


@pytest.mark.slow
def test_each_number_of_samples_has_its_own_floor(experiments: Path, tmp_path: Path) -> None:
    """A score of fewer samples has a higher floor: one line for each, with the number."""
    shutil.copytree(experiments, tmp_path / "digits")
    root = tmp_path / "digits"
    sample(root / "union", root / "more", make(SampleConfig, {"num": 18, "steps": 2, "device": "cpu"}), Progress())
    scoring = EvaluateConfig(root / "latents.h5", ExtractorSettings("tokenizer"), device="cpu")
    evaluate(root / "more", scoring, Progress())
    floors = {}
    for name, size in (("union-2", 12), ("more", 18)):
        figures = json.loads((root / name / "metrics.json").read_text())["figures"]
        floors[size] = next(figure["real"]["value"] for figure in figures if figure["metric"] == "frechet_distance")
    assert floors[12] != floors[18]
    page = page_of(root, page=tmp_path / "report.html")
    assert data_of(page)["charts"]["scores-0"]["metrics"]["frechet_distance"]["floors"] == [
        {"name": f"real images in their place ({size})", "y": floors[size]} for size in (12, 18)
    ]
    table = page.split("<tfoot>")[1].split("</tfoot>")[0]
    assert table.count("real images in their place (12)") == table.count("real images in their place (18)") == 1
