"""eval --trajectories: the paths of the samples themselves, and the distance of their latents to real ones."""

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from small import Small

from gmtool.artifacts.run import open_run
from gmtool.artifacts.samples import open_samples
from gmtool.errors import UserError
from gmtool.nn.build import build_network
from gmtool.progress import Progress
from gmtool.sampling.model import load_model
from gmtool.sampling.plan import make_plan
from gmtool.sampling.sampler import generate, unguided_field
from gmtool.settings import changed, make
from gmtool.stages.evaluate.config import EvaluateConfig
from gmtool.stages.evaluate.run import evaluate
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.sample.run import sample
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.run import train

TRAINING = make(TrainConfig, {"steps": 2, "batch_size": 16, "preview_every": 0, "device": "cpu"})
SAMPLING = make(SampleConfig, {"num": 40, "steps": 50, "solver": "euler", "device": "cpu"})
JUDGE = make(EvaluateConfig, {"features": "tokenizer", "trajectories": 30, "batch_size": 16, "device": "cpu"})
METRICS = ("path_length", "straightness", "lipschitz", "transport", "sliced_transport")


@pytest.fixture(scope="module")
def samples(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples of an mm-fm run by Euler's method in as many steps as paths are followed in."""
    root = tmp_path_factory.mktemp("trajectories")
    train(small.latents("classes"), root / "run", changed(TRAINING, {"objective": "mm-fm"}), Progress())
    sample(root / "run", root / "samples", SAMPLING, Progress())
    return root / "samples"


@pytest.mark.parametrize(
    "settings",
    [{}, {"objective": "mm-fm"}, {"objective": "gm-kl"}, {"objective": "gm-kl", "source": "gmm"}],
    ids=["fm", "mm-fm", "gm-kl", "union"],
)
def test_the_flow_is_the_one_that_samples_follow(small: Small, tmp_path: Path, settings: dict) -> None:
    """Euler's method along `unguided_field` ends where `generate` does, whatever coordinates the run works in."""
    train(small.latents("classes"), tmp_path / "run", changed(TRAINING, {"steps": 1, **settings}), Progress())
    run = open_run(tmp_path / "run")
    network = build_network(run.architecture, 0).eval()
    stream = torch.Generator().manual_seed(0)
    for parameter in network.parameters():  # heads begin at 0
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=stream))
    plan = make_plan(changed(SAMPLING, {"steps": 7}).sampling, run.method, 0, seed=3)
    classes = torch.arange(5) % 3
    with ExitStack() as stack, torch.no_grad():
        model = load_model(run, network, torch.device("cpu"), torch.float32, None, stack)
        field, x = unguided_field(model, plan.seed, range(5), classes)
        for step in range(7):
            x = x - field(x, torch.full((5,), 1 - step / 7)) / 7
        expected = run.statistics().normalise(generate(model, plan, range(5), classes))
    torch.testing.assert_close(x, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_figures_are_those_of_the_samples(samples: Path) -> None:
    report = evaluate(samples, JUDGE, Progress())
    figures = {name: report.figure(name) for name in METRICS}
    for metric, figure in figures.items():
        assert figure is not None and figure.generated.images == 30
        assert (figure.real is None) == (metric in METRICS[:3])
    length, bend = (figures[name].generated.value for name in METRICS[:2])
    assert length > 0 and bend >= 0 and figures["lipschitz"].generated.value > 0
    # an untrained network hardly moves its samples: they stay as far from the data as the mixture is
    real = figures["transport"].real
    assert real is not None and 0.2 * real.value < figures["transport"].generated.value < 5 * real.value
    stored = json.loads((samples / "metrics.json").read_text())
    assert {entry["metric"] for entry in stored["figures"]} >= set(METRICS)


def test_without_the_flag_nothing_is_followed(samples: Path) -> None:
    report = evaluate(samples, changed(JUDGE, {"trajectories": 0}), Progress())
    assert all(report.figure(metric) is None for metric in METRICS)


def test_other_weights_than_those_that_drew_are_refused(samples: Path, small: Small, tmp_path: Path) -> None:
    shutil.copytree(samples, tmp_path / "samples")
    run = Path(open_samples(samples).manifest.input("run").path)
    shutil.move(run, tmp_path / "kept")
    try:
        with pytest.raises(UserError, match="does not exist: give the folder that `gmtool train` writes"):
            evaluate(tmp_path / "samples", JUDGE, Progress())
        train(small.latents("classes"), run, changed(TRAINING, {"objective": "mm-fm", "seed": 5}), Progress())
        with pytest.raises(UserError, match=r"was drawn with other weights than .* has now: run gmtool sample again"):
            evaluate(tmp_path / "samples", JUDGE, Progress())
    finally:
        shutil.rmtree(run, ignore_errors=True)
        shutil.move(tmp_path / "kept", run)
