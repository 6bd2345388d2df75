"""What the README shows works as it is written: its flags, its five commands, its Python, its files and links."""

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
COMMANDS = typer.main.get_command(app)

# what makes each of the five commands small, and what they take in the place of ImageNet and its 8192 modes
SMALL = {
    "encode": ["--tokenizer", "pixels", "--patch-size", "4", "--workers", "0"],
    "fit-gmm": ["--modes", "4"],
    "train": ["--steps", "2", "--save-every", "2"],
    "sample": ["--num", "8"],
    "eval": ["--features", "tokenizer"],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands(block: str) -> Iterator[list[str]]:
    """The arguments of gmtool's commands of a shell block, also of those that torchrun starts."""
    for line in block.replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if words[:1] == ["torchrun"]:
                yield words[words.index("--") + 1 :]
            elif words[:1] == ["gmtool"]:
                yield words[1:]


ALL = [words for block in blocks("sh") for words in commands(block)]


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
    chain = next(block for block in blocks("sh") if "gmtool encode imagenet/ latents.h5\n" in block)
    words = list(commands(chain))
    assert [each[0] for each in words] == list(SMALL)
    for each in words:
        assert main([*each, *SMALL[each[0]]]) == 0
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
    assert blocks("python")
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["loss"].shape == (6,) and names["x"].isfinite().all()


def test_files_that_it_names_are_there() -> None:
    named = set(re.findall(r"`?((?:examples|gmtool|tests|\.ci)/[\w./-]*\w)`?", README))
    missing = [name for name in sorted(named) if not (ROOT / name).exists()]
    assert named and not missing


def test_links_within_it_lead_somewhere() -> None:
    titles = {
        re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)", README, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= titles


def test_every_command_and_preset_is_named() -> None:
    assert all(f"gmtool {name}" in README or f"`{name}`" in README for name in COMMANDS.commands)
    assert all(f"`{path.stem}`" in README for path in (ROOT / "gmtool" / "presets").glob("*.toml"))
