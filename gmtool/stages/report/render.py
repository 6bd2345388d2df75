"""The page as HTML: contents into a template, with style and script of its own, and nothing that is loaded."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from gmtool import __version__
from gmtool.errors import UserError
from gmtool.stages.report.contents import Contents
from gmtool.stages.report.layout import HEIGHT, WIDTH
from gmtool.stages.report.pictures import Picture, fit_pictures
from gmtool.stages.report.plots import plots_of
from gmtool.stages.report.provenance import kind_words
from gmtool.stages.report.scores import axes_of, headline, short

GENERATOR = "gmtool report"
"""Begins what a page names as its maker."""

NO_PICTURE = Picture("", 0, 0, (0, 0))


def render(contents: Contents, size: int, date: datetime.date | None) -> str:
    """The page as HTML, of ``size`` bytes at most, its pictures made smaller where need be. date: shown on it.

    Raises UserError where it is larger without any picture.
    """
    bare = _page(contents, [NO_PICTURE] * len(contents.files), date)
    # each picture's place holds its sizes too, which are not known yet
    left = size - len(bare.encode()) - 200 * len(contents.files)
    if left < 2000 * len(contents.files):
        least = (len(bare.encode()) + 2200 * len(contents.files)) / 1e6
        raise UserError(
            f"--max-size is too small for what the page shows: give {least + 0.1:.1f} MB or more, or fewer paths"
        )
    return _page(contents, fit_pictures(contents.files, left), date)


def _page(contents: Contents, pictures: Sequence[Picture], date: datetime.date | None) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "short": short,
        "exact": repr,
        "words": lambda flag: flag.removeprefix("--").replace("-", " "),
    }
    style, script = _asset("page.css"), _asset("chart.js") + _asset("page.js")
    names = {name: index for index, name in enumerate(contents.run_names)}
    charts = plots_of(contents, names)
    return environment.from_string(_asset("page.html.j2")).render(
        contents=contents,
        pictures=pictures,
        charts=charts,
        axes=axes_of,
        sections=_sections(contents),
        summary=_summary(contents),
        headline=headline,
        run_index=names.__getitem__,
        kind_words=kind_words,
        box_width=WIDTH,
        box_height=HEIGHT,
        generator=f"{GENERATOR} {__version__}",
        date=date,
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script),
        data=Markup(_for_script({"charts": charts})),
    )


def _asset(name: str) -> str:
    return (files("gmtool.stages.report") / "page" / name).read_text("utf-8")


def _hash(text: str) -> str:
    """What a content security policy knows a style or script by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _for_script(value: Any) -> str:
    """JSON that can stand in a script element: no text in it ends the element or begins a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _sections(contents: Contents) -> list[tuple[str, str]]:
    there = {
        "scores": contents.tables,
        "samples": contents.strips,
        "sweeps": contents.sweeps,
        "likelihood": contents.likelihoods,
        "reconstructions": contents.reconstructions,
        "training": contents.panels,
        "previews": contents.preview_steps,
        "settings": contents.runs,
        "mixture": contents.mixtures,
        "provenance": True,
        "left-out": contents.left_out,
    }
    return [(key, key.capitalize().replace("-", " ")) for key, shown in there.items() if shown]


def _summary(contents: Contents) -> str:
    """What the page is about: "2 runs, 8 sets of samples and a mixture"."""
    words = {
        "run": ("a run", "runs"),
        "samples": ("a set of samples", "sets of samples"),
        "sweep": ("a sweep", "sweeps"),
        "gmm": ("a mixture", "mixtures"),
        "latents": ("a latents file", "latents files"),
        "decoder": ("a decoder", "decoders"),
        "reconstruction": ("a set of reconstructions", "sets of reconstructions"),
        "likelihood": ("a likelihood", "likelihoods"),
    }
    counts = Counter(artifact.kind for artifact in contents.collection.artifacts)
    parts = [
        one if counts[kind] == 1 else f"{counts[kind]:,} {many}" for kind, (one, many) in words.items() if counts[kind]
    ]
    return (" and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]).capitalize() + "."
