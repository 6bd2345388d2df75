"""--mode-mean: the mean of the mode as channels of the network's input, in training, sampling and guidance."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import Small

from gmtool.artifacts.gmm import open_gmm
from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.run import open_run
from gmtool.data.mode_statistics import ModeTable
from gmtool.errors import UserError
from gmtool.nn.architecture import Conditions, TransformerArchitecture
from gmtool.nn.build import build_network
from gmtool.nn.dit import DiTArchitecture
from gmtool.nn.ditdh import DiTDHArchitecture
from gmtool.nn.network import Network
from gmtool.progress import Progress
from gmtool.sampling.model import load_model
from gmtool.sampling.plan import make_plan
from gmtool.sampling.sampler import generate
from gmtool.settings import changed, make
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.sample.run import sample
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.plan import facts_of, plan_training
from gmtool.stages.train.run import train

TRAINING = make(TrainConfig, {"steps": 2, "batch_size": 16, "preview_every": 0, "device": "cpu", "mode_mean": True})
SAMPLING = make(SampleConfig, {"num": 6, "steps": 2, "device": "cpu"})
UNION = {"objective": "gm-kl", "source": "gmm"}


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        (UNION, True),
        ({**UNION, "mode_mean": False}, False),
        ({"objective": "gm-kl", "condition": "mode"}, False),
        ({"objective": "mm-fm", "condition": "mode"}, False),
        ({"objective": "mm-fm", "condition": "mode", "mode_mean": True}, True),
    ],
    ids=["union", "union without", "gm-kl", "mm-fm", "mm-fm with"],
)
def test_a_union_shows_it_unless_told_not_to(small: Small, settings: dict, shown: bool) -> None:
    config = make(TrainConfig, {"device": "cpu", **settings})
    with open_latents(small.latents("classes")) as latents, open_gmm(small.gmm("classes")) as gmm:
        plan = plan_training(config, facts_of(latents, gmm), gpu=False)
        assert plan.method.mode_mean is shown
        assert plan.architecture.context == (latents.shape[0] if shown else 0)


@pytest.mark.parametrize(
    "kind",
    [DiTArchitecture((2, 4, 4), 1, 16, 2), DiTDHArchitecture((2, 4, 4), 1, 16, 2, 1, 16, 2)],
    ids=["dit", "ditdh"],
)
def test_networks_see_the_context(kind: TransformerArchitecture) -> None:
    network = build_network(replace(kind, patch=2, context=3), 0)
    stream = torch.Generator().manual_seed(0)
    for parameter in network.parameters():  # some begin at 0
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=stream))
    x, t, context = torch.randn(2, 2, 4, 4), torch.rand(2), torch.randn(2, 3, 4, 4)
    first = network(x, t, Conditions(context=context))
    assert first.shape == x.shape
    assert (network(x, t, Conditions(context=context + 1)) - first).abs().amax((1, 2, 3)).min() > 1e-4
    with pytest.raises(ValueError, match="sees 3 channels of context"):
        network(x, t, Conditions())


class Seen(Network):
    """Records every context that it is called with."""

    def forward(self, x_t, t, conditions):
        self.contexts = [*getattr(self, "contexts", []), conditions.context]
        return torch.zeros_like(x_t)


@pytest.mark.parametrize(
    "settings", [{"condition": "mode"}, {"objective": "mm-fm", "condition": "mode"}], ids=["gaussian", "mm-fm"]
)
def test_sampling_shows_the_mean_of_the_samples_mode_and_hides_it_for_guidance(
    small: Small, tmp_path: Path, settings: dict
) -> None:
    train(small.latents("classes"), tmp_path / "run", changed(TRAINING, settings), Progress())
    run = open_run(tmp_path / "run")
    assert run.architecture.context == 16
    table = ModeTable(open_gmm(small.gmm("classes")), run.statistics(), torch.device("cpu"), whitened=False)
    network = Seen(run.architecture)
    sampling = changed(SAMPLING, {"steps": 1, "guidance": "cfg"}).sampling
    plan = make_plan(sampling, run.method, run.architecture.spectral, seed=0)
    modes = torch.tensor([3, 0, 1])
    with ExitStack() as stack:
        model = load_model(run, network, torch.device("cpu"), torch.float32, None, stack)
        generate(model, plan, range(3), torch.zeros(3, dtype=torch.long), modes)
    hidden, shown = network.contexts  # classifier-free guidance asks without the condition first
    torch.testing.assert_close(shown, table.at(modes).mean)
    assert not hidden.any()


def test_training_shows_the_mean_of_each_samples_mode(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And zeros where the condition is hidden; the modes of a union are never hidden."""
    seen: list[Conditions] = []
    forward = torch.nn.Module.__call__

    def watch(module, *arguments):
        if isinstance(module, Network):
            seen.append(arguments[2])
        return forward(module, *arguments)

    monkeypatch.setattr(torch.nn.Module, "__call__", watch)
    for name, settings in (("mode", {"condition": "mode"}), ("union", UNION | {"condition": "mode"})):
        seen.clear()
        train(small.latents("classes"), tmp_path / name, changed(TRAINING, {"dropout": 0.5, **settings}), Progress())
        statistics = open_run(tmp_path / name).statistics()
        with open_gmm(small.gmm("classes")) as gmm:
            means = ModeTable(gmm, statistics, torch.device("cpu"), whitened=False).at(torch.arange(4)).mean
        modes, contexts = (torch.cat([getattr(value, part) for value in seen]) for part in ("modes", "context"))
        hidden = modes == 4
        assert hidden.any() == (name == "mode") and len(modes) == 32
        assert not contexts[hidden].any()
        torch.testing.assert_close(contexts[~hidden], means[modes[~hidden]])


def test_a_union_with_means_draws(small: Small, tmp_path: Path) -> None:
    train(small.latents("classes"), tmp_path / "run", changed(TRAINING, UNION), Progress())
    assert sample(tmp_path / "run", tmp_path / "samples", SAMPLING, Progress()).count == 6


def test_a_mean_needs_a_mode(small: Small, tmp_path: Path) -> None:
    for settings in ({"condition": "class"}, {"objective": "mm-fm"}):
        with pytest.raises(
            UserError, match="--mode-mean needs a network that is conditioned on the mode: use --condition"
        ):
            train(small.latents("classes"), tmp_path / "run", changed(TRAINING, settings), Progress())
