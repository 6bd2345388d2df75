"""A run's network in plain PyTorch, and latents drawn with it, from three files of the run and nothing else.

    python examples/load_run.py run --class 3 --out latents.safetensors

A network is an ordinary module of ``gmtool.nn``, built from the architecture in ``config.json``; its weights are in
``checkpoints/step-.../ema.safetensors`` under the module's own names, and the statistics that normalise latents are in
``statistics.safetensors``. Time is 0 at the data and 1 at the noise; a network predicts the velocity, noise
minus data, or a mixture over it. This holds for DiT and DiTDH alike, trained here or imported.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gmtool.nn.architecture import Conditions
from gmtool.nn.build import architecture_from_json, build_network
from gmtool.nn.network import Network


def load_record(run: Path) -> dict[str, Any]:
    """What config.json says: ``config``, the settings of training, and ``details`` with the architecture."""
    return json.loads((run / "config.json").read_text())


def load_network(run: Path, weights: str = "ema.safetensors") -> Network:
    """The network of a run's newest checkpoint; weights: ema.safetensors, or model.safetensors of the last step."""
    settings = load_record(run)["details"]["architecture"]
    network = build_network(architecture_from_json(settings), seed=0)
    newest = max(folder for folder in (run / "checkpoints").glob("step-*") if not folder.suffix)
    network.load_state_dict(load_file(newest / weights))
    return network.eval()


@torch.inference_mode()
def euler(network: Network, noise: Tensor, labels: Conditions, steps: int, shift: float) -> Tensor:
    """Latents (B, C, H, W) in the network's coordinates, by Euler's method from noise at t = 1 to data at t = 0."""
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    times = shift * times / (1 + (shift - 1) * times)
    x = noise
    for now, then in itertools.pairwise(times):
        velocity = network(x, now.to(x).expand(len(x)), labels)
        x = x + float(then - now) * (velocity if isinstance(velocity, Tensor) else velocity.mean())
    return x


def restore(run: Path, x: Tensor) -> Tensor:
    """Latents as the tokenizer made them."""
    statistics = load_file(run / "statistics.safetensors")
    return x * statistics["std"] + statistics["mean"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--class", dest="label", type=int, default=0, help="class of the samples, where there are any")
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("latents.safetensors"))
    arguments = parser.parse_args()
    config = load_record(arguments.run)["config"]
    if config["source"] == "gmm":
        parser.error("this run starts from a mixture, whose modes gmtool sample draws")
    network = load_network(arguments.run)
    architecture = network.architecture
    if architecture.modes:
        parser.error("this run is conditioned on modes, which gmtool sample draws")
    noise = torch.randn(arguments.count, *architecture.shape, generator=torch.Generator().manual_seed(0))
    classes = torch.full((arguments.count,), arguments.label) if architecture.classes else None
    x = euler(network, noise, Conditions(classes), arguments.steps, config["time_shift"])
    save_file({"latents": restore(arguments.run, x)}, arguments.out)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"{arguments.out}: {arguments.count} latents of {tuple(x.shape[1:])}, from {parameters:,} parameters")


if __name__ == "__main__":
    main()
