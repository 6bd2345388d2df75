"""``gmtool inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gmtool.stages.inspect.run import Description


def command(
    path: Annotated[Path, typer.Argument(metavar="FILE-OR-FOLDER", help="Anything that gmtool wrote.")],
    *,
    verify: Annotated[bool, typer.Option("--verify", help="Read everything and verify all checksums.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Describe a file or folder: what it is, how it was made, and whether its inputs still match.

    Example: gmtool inspect gmm.h5 --verify
    """
    from gmtool.stages.inspect import run

    description = run.describe(path)
    if verify:
        run.verify(path)
    if json:
        print(_to_json(description))
    else:
        _print(description)
        if verify:
            print(f"{path}: all checksums match")


def _to_json(description: Description) -> str:
    from dataclasses import asdict
    from json import dumps

    record = asdict(description.manifest)
    record["inputs"] = [{**asdict(used.input), "state": used.state} for used in description.inputs]
    return dumps({"path": str(description.path), **record, "facts": dict(description.facts)}, indent=1, default=str)


def _print(description: Description) -> None:
    from gmtool.artifacts.manifest import KINDS
    from gmtool.console import print_table

    manifest = description.manifest
    words, _ = KINDS[manifest.kind]
    print(f"{description.path} is {words}, made by gmtool {manifest.stage} {manifest.gmtool}")
    rows = [("fingerprint", manifest.fingerprint), *description.facts]
    rows += [(name, _short(value)) for name, value in manifest.details.items()]
    print_table("about", ("", "value"), rows)
    if manifest.arrays:
        print_table(
            "arrays",
            ("name", "shape", "type", "unit"),
            [
                (name, " x ".join(map(str, array.shape)), array.dtype, array.unit)
                for name, array in manifest.arrays.items()
            ],
        )
    print_table("settings", ("name", "value"), [(name, _short(value)) for name, value in manifest.config.items()])
    if description.inputs:
        print_table(
            "made from",
            ("input", "path", "now"),
            [(used.input.role, used.input.path, used.state) for used in description.inputs],
        )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 70 else text[:67] + "..."
