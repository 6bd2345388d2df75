"""Extractors that transformers has: a folder or hub id with weights, a size of images, colours, one vector per image.

Only tensors are read: safetensors, or where a repository has none a ``pytorch_model.bin`` without unpickling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from gmtool.errors import UserError
from gmtool.evaluation.features import Features
from gmtool.tokenizers.pretrained import model_config, model_folder, model_record, reading_model
from gmtool.tokenizers.vit import Statistics


@dataclass(frozen=True)
class WeightSource:
    """Where the weights of a network are: a hub id or a local folder, given by a flag."""

    id_or_folder: str
    flag: str

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return Path(self.id_or_folder).expanduser().is_dir()

    @property
    def folder(self) -> Path:
        """The folder that holds the weights, downloaded if need be. Raises UserError, naming the flag, without them."""
        return model_folder(self.id_or_folder, self.flag, pickled=True)

    @property
    def digest(self) -> str:
        """A digest of the weights."""
        digest: str = model_record(self.id_or_folder, self.flag, pickled=True)["weights"]
        return digest

    def prepare(self, patience: float | None) -> str:
        """See `gmtool.evaluation.extractors.Family`."""
        if patience == 0 and not self.is_local:
            return f"its weights are {self.id_or_folder}, which is downloaded if it is not in the cache"
        return f"its weights are in {self.folder}"


@dataclass(frozen=True, eq=False)
class VisionExtractor:
    """A network on images that are resized to ``side`` px (bicubic, antialiased, not rounded) and normalised.

    read: makes the vectors (B, D) of normalised images (B, 3, side, side). colours: mean and deviation in [0, 1].
    """

    read: Callable[[Tensor], Tensor]
    size: int
    side: int
    colours: Statistics
    device: torch.device
    name: str

    def __call__(self, images: Tensor) -> Features:
        """See `Extractor`."""
        with torch.inference_mode():
            return Features(self.read(self.prepared(images.to(self.device))).float().cpu())

    def prepared(self, images: Tensor) -> Tensor:
        """Images uint8 (B, 3, S, S) resized and normalised, (x / 255 - mean) / std: (B, 3, side, side) float32."""
        resized = interpolate(images.float(), (self.side, self.side), mode="bicubic", antialias=True)
        mean, deviation = (255 * torch.tensor(values, device=self.device).view(3, 1, 1) for values in self.colours)
        return (resized - mean) / deviation


def load_network(kind: str, folder: Path, model_types: tuple[str, ...], what: str, device: torch.device) -> Any:
    """transformers' class ``kind`` with the weights of a folder, frozen and in evaluation mode.

    model_types: those that its configuration may name. what: the flag, for messages. Raises UserError for another
    network, and for weights that are damaged or incomplete.
    """
    import transformers

    hub_logging: Any = transformers.utils.logging
    hub_logging.disable_progress_bar()
    model_type = model_config(folder, what).get("model_type")
    if model_type not in model_types:
        raise UserError(
            f"{what} {folder} holds a network of type {model_type!r}: give one of {' or '.join(model_types)}"
        )
    pickled = not any(folder.glob("*.safetensors"))
    with reading_model(folder, what):
        network, report = getattr(transformers, kind).from_pretrained(
            folder, local_files_only=True, weights_only=True, use_safetensors=not pickled, output_loading_info=True
        )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"it lacks {missing[0]}")
    frozen: nn.Module = network.requires_grad_(False).eval()
    return frozen.to(device)
