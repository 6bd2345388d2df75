from pathlib import Path

import pytest
import torch
from small import Small

from gmtool.artifacts.latents import open_latents
from gmtool.nn.compile import compile_network
from gmtool.progress import Progress
from gmtool.sampling import model as load
from gmtool.settings import make
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.sample.run import sample
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.run import train


@pytest.mark.slow
def test_a_compiled_network_draws_the_same(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a last batch of another size."""
    compiled = []
    monkeypatch.setattr(load, "compile_network", lambda network: compiled.append(compile_network(network, "eager")))
    torch.compiler.reset()
    train(
        small.latents("classes"),
        tmp_path / "run",
        make(TrainConfig, {"steps": 3, "batch_size": 8, "preview_every": 0, "device": "cpu"}),
        Progress(),
    )
    drawn = []
    for compiling in (False, True):
        sampling = make(
            SampleConfig,
            {"num": 5, "steps": 2, "batch_size": 3, "compile": compiling, "precision": "float32", "device": "cpu"},
        )
        sample(tmp_path / "run", tmp_path / "samples", sampling, Progress())
        with open_latents(tmp_path / "samples" / "latents.h5") as latents:
            drawn.append(torch.from_numpy(latents.patches(slice(None)).astype("float32")))
    assert len(compiled) == 1
    torch.testing.assert_close(*drawn, atol=5e-3, rtol=1e-2)  # latents are kept in half precision
