"""Phrases that a reader of the field stumbles over are not to come back; single words are in .ci/vocabulary.txt."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXTS = [
    *sorted((ROOT / "gmtool").rglob("*.py")),
    *(path for path in sorted((ROOT / "tests").rglob("*.py")) if path != Path(__file__)),
    *sorted((ROOT / "gmtool").rglob("*.toml")),
    *sorted((ROOT / "gmtool").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.py")),
    *sorted((ROOT / "examples").rglob("*.md")),
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
]
PHRASES = {
    r"\bgo(?:es)? on (?:where|with|from)\b": "resumes",
    r"\bat hand\b": "available",
    r"\bborn again\b": "re-initialised",
    r"\btold (?:its|the|their) modes?\b": "conditioned on the mode",
    r"\bgo(?:es)? over (?:its|the|a) preset\b": "override the preset",
    r"\bimages a network call\b": "batch size",
    r"\bdecay a step\b": "decay per step",
    r"\b(?:one|order|number|evaluation|operation|byte|row|file|line|coefficient|figure|tensor|descriptor|panel)s? "
    r"an? (?:step|sample|position|mode|batch|token|image|class|evaluation|method|call|second)\b": "per",
    r"\ban? latent entry\b": "per latent entry",
    r"\bleft open\b": "resolve defaults",
    r"\bin so many words\b": "explicitly",
    r"\bcan mend\b|\bmended?\b": "fix, repair",
    r"\bfor people\b": "human-readable",
    r"\bstill (?:is )?what it was\b|\bwhat was read then\b": "matches",
    r"\bby hand of\b": "by",
    r"\bmade ready to be asked\b": "loaded",
    r"\brooms?\b": "buffer",
    r"\bhow (?:fast it goes|it was made ready)\b": "throughput",
    r"\bkeep the input of each block alone\b": "activation checkpointing",
    r"\bleave to each process\b": "shard",
    r"\bwhose condition is hidden\b": "condition dropout",
    r"pip install (?:-\S+ )*['\"]?gmtool\b": "pip install '.[EXTRA]', since the index's gmtool is another project",
}

ACROSS_LINES = r"\s+(?:#\s+|\"\s*\")?"
"""A space, or where a line ends in a comment or between two parts of a string."""

VAGUE = {"each", "found"}
"""Names of variables that tell a reader nothing."""


@pytest.mark.parametrize("phrase", PHRASES)
def test_no_phrase_of_the_list_is_left(phrase: str) -> None:
    matches = []
    for path in TEXTS:
        text = path.read_text()
        for match in re.finditer(phrase.replace(" ", ACROSS_LINES), text, re.IGNORECASE):
            line = text.count("\n", 0, match.start()) + 1
            matches.append(f"{path.relative_to(ROOT)}:{line}: {match.group()}")
    assert not matches, f"use: {PHRASES[phrase]}"


def test_where_an_extra_is_installed_is_said_by_one_function() -> None:
    """`gmtool.errors.install`: the command alone works in the clone only."""
    assert [path.name for path in (ROOT / "gmtool").rglob("*.py") if "pip install '." in path.read_text()] == [
        "errors.py"
    ]


def test_names_say_what_they_hold() -> None:
    vague = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in TEXTS
        if path.suffix == ".py"
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Name) and node.id in VAGUE) or (isinstance(node, ast.arg) and node.arg in VAGUE)
    ]
    assert not vague
