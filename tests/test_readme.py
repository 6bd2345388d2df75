"""What the README and the reference show works as written: flags, the five commands, Python, files and links."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
from small import Small

from gmtool.cli.app import app, main
from gmtool.flow.source import ModeStatistics
from gmtool.mixture.gaussian_mixture import GaussianMixture

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
REFERENCE = (ROOT / "gmtool" / "REFERENCE.md").read_text()
PAGES = {"README.md": README, "gmtool/REFERENCE.md": REFERENCE}
COMMANDS = typer.main.get_command(app)

# added to each of the five commands to make it small: another tokenizer, fewer modes, steps and samples
SMALL = {
    "encode": ["--tokenizer", "pixels", "--patch-size", "4", "--workers", "0"],
    "fit-gmm": ["--modes", "4"],
    "train": ["--steps", "2", "--save-every", "2"],
    "sample": ["--num", "8"],
    "eval": ["--features", "tokenizer"],
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)


def commands(block: str) -> Iterator[list[str]]:
    """The arguments of gmtool's commands of a shell block, also of those that torchrun starts."""
    for line in block.replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if words[:1] == ["torchrun"]:
                yield words[words.index("--") + 1 :]
            elif words[:1] == ["gmtool"]:
                yield words[1:]


ALL = [words for page in PAGES.values() for block in blocks(page, "sh") for words in commands(block)]


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_a_command_has_these_flags_and_values(words: list[str]) -> None:
    """Parsed and checked as when it is run; nothing is run."""
    command = COMMANDS.commands[words[0]]
    with command.make_context(words[0], list(words[1:])) as context:
        assert context.params


@pytest.mark.slow
def test_the_five_commands(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one folder, in the order of the README."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenet").symlink_to(small.classes / "images")
    chain = next(block for block in blocks(README, "sh") if "gmtool encode imagenet/ latents.h5\n" in block)
    five = list(commands(chain))
    assert [words[0] for words in five] == list(SMALL)
    for words in five:
        assert main([*words, *SMALL[words[0]]]) == 0
    assert {path.name for path in tmp_path.iterdir()} >= {"latents.h5", "gmm.h5", "run", "samples"}


def test_the_python() -> None:
    """On a network that predicts one component; every block sees the names of those before."""
    generator = torch.Generator().manual_seed(0)
    modes = ModeStatistics(torch.zeros(6, 3, 2, 2), torch.ones(6, 3, 2, 2))

    def network(x_t: torch.Tensor, _t: torch.Tensor) -> GaussianMixture:
        weights = torch.zeros(len(x_t), 1, 1, *x_t.shape[2:])
        return GaussianMixture(x_t[:, None] * 0.5, weights, torch.full((len(x_t), 1, 1, 1, 1), 0.1))

    names = {"x": torch.randn(6, 3, 2, 2, generator=generator), "generator": generator, "modes": modes}
    names |= {"network": network, "noise": torch.randn(6, 3, 2, 2, generator=generator)}
    assert blocks(README, "python")
    for block in blocks(README, "python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["loss"].shape == (6,) and names["x"].isfinite().all()


@pytest.mark.parametrize("name", PAGES)
def test_files_that_a_page_names_are_there(name: str) -> None:
    named = set(re.findall(r"`?((?:examples|gmtool|tests|\.ci)/[\w./-]*\w)`?", PAGES[name]))
    missing = [path for path in sorted(named) if not (ROOT / path).exists()]
    assert named and not missing


def anchors(page: str) -> set[str]:
    """What GitHub lets a link lead to: the titles in lower case, with hyphens for spaces."""
    titles = re.findall(r"^#+ (.*)", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", PAGES[name])
    assert links
    for path, anchor in links:
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), path
        assert not anchor or anchor in anchors(target.read_text()), anchor


@pytest.mark.parametrize("name", PAGES)
def test_flags_that_a_page_names_are_flags(name: str) -> None:
    """Those of other programs begin a line of a shell block."""
    options = [option for command in COMMANDS.commands.values() for option in command.params]
    flags = {flag for option in options for flag in (*option.opts, *option.secondary_opts)}
    text = re.sub(r"^(?:torchrun|pip) .*$", "", PAGES[name], flags=re.MULTILINE)
    text = re.sub(r"`pip [^`]*`", "", text)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z\d-]*", text)) - {"--help"}
    assert named and named <= flags


def test_every_command_is_named() -> None:
    assert all(f"gmtool {name}" in README or f"`{name}`" in README for name in COMMANDS.commands)
