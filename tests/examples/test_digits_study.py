"""The digits that studies share, and the study of methods: its arithmetic, and a run of it in miniature."""

import sys
from dataclasses import replace
from statistics import stdev

import numpy as np
import pytest
from PIL import Image
from user import load_example

from gmtool.settings import changed


@pytest.fixture(scope="module")
def digits():
    return load_example("digits")


@pytest.fixture(scope="module")
def study(digits):
    return load_example("digits_study")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


def names(folder):
    return {path.name for path in folder.glob("*/*.png")}


@pytest.mark.slow
def test_settings_are_chosen_on_digits_that_no_figure_is_quoted_on(digits, root):
    """The validation part lies within the training digits: its reference shares nothing with the test's."""
    prepared = digits.prepare(root, "validation")
    reference, training = names(prepared.reference), names(prepared.reference.with_name("train"))
    test = names(root / "images" / "held-out")
    assert (len(reference), len(training), len(test)) == (397, 1003, 397)
    assert not reference & test and not training & test and not reference & training


@pytest.mark.slow
def test_the_score_tells_copies_from_new_digits(digits, root):
    prepared = digits.prepare(root, "validation")

    def images(folder):
        return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*/*.png"))])

    new, copies = (
        digits._score(prepared, images(folder_of_part))
        for folder_of_part in (prepared.reference, prepared.reference.with_name("train"))
    )
    assert (new.distance, new.newness) == pytest.approx((0, 1), abs=1e-3)
    assert copies.newness == pytest.approx(0, abs=1e-3)
    assert copies.distance == pytest.approx(copies.floor, rel=1e-3)
    assert copies.distance > 0.1


@pytest.mark.slow
def test_the_study_in_miniature_and_again(digits, study, root, monkeypatch, capsys):
    """The table and the picture come out; the second time nothing is trained or drawn again."""
    tiny = replace(study.QUICK, seeds=1, samples=20, velocity=(("euler", (1,)),), mixture=(("gm-ode", (1,)),))
    monkeypatch.setattr(study, "QUICK", tiny)
    monkeypatch.setattr(sys, "argv", ["digits_study.py", str(root), "--quick", "--part", "validation"])
    study.main()
    first = capsys.readouterr().out
    for row in ("flow matching, euler", "GMFlow, gm-ode", "MM-FM, 4 modes, euler", "union, 4 modes, gm-ode"):
        assert row in first
    assert "Fréchet distance" in first and "nearest training digit" in first
    assert (root / "methods.png").stat().st_size > 10_000
    assert not list(root.glob("validation/samples/*"))

    def never(*_):
        raise AssertionError("drawn again")

    monkeypatch.setattr(digits, "sample", never)
    study.main()
    assert capsys.readouterr().out == first


def test_lines_hold_mean_and_deviation_over_seeds(digits, study):
    method = study.Method("union", "gm-kl", 8)
    curves = [
        study.Curve(method, "gm-ode", seed, {4: digits.Score(value, 0.25, 1 / value)})
        for seed, value in enumerate((1, 2, 4))
    ]
    (line,) = study.lines(curves, lambda score: 6 * score.newness)
    assert (line.label, line.means, line.spreads) == (
        "union, 8 modes, gm-ode",
        {4: 3.5},
        {4: pytest.approx(stdev((6, 3, 1.5)))},
    )
    assert study.floor(curves) == 0.25


def test_settings_that_differ_are_trained_apart(digits):
    base = digits.budget(10, 0)
    keys = {digits._key(config) for config in (base, changed(base, {"seed": 1}), changed(base, {"objective": "gm-kl"}))}
    assert len(keys) == 3 and digits._key(digits.budget(10, 0)) in keys
