"""The frozen ViT of a discriminator: from the hub, a folder in Hugging Face form, or a file of DINO's authors.

Only tensors are read: of a ``pytorch_model.bin`` or ``.pth`` too, nothing is executed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gmtool.errors import MachineError, UserError
from gmtool.foreign.dino import DinoWeights, dino_weights
from gmtool.foreign.reading import reading
from gmtool.foreign.torch_files import read_checkpoint
from gmtool.huggingface import hub_folder
from gmtool.reconstruction.discriminator import DinoFeatures, default_blocks
from gmtool.tokenizers.pretrained import reading_model

DEFAULT = "facebook/dino-vits8"
EPS = 1e-6
GELU = "gelu_pytorch_tanh"
FILES = ("config.json", "*.safetensors", "pytorch_model.bin")
_FLAG = "--discriminator-weights"
_WHAT = "a ViT of transformers, or a file of DINO's authors"


def load_features(source: str | None, blocks: tuple[int, ...], device: torch.device) -> DinoFeatures:
    """The features of a ViT: a hub id, a folder, or a file; by default those of DINO ViT-S/8, from the hub.

    blocks: numbers of those that are read on the way; none for the last of each quarter. Raises UserError when it is
    something else, damaged, or has fewer blocks, MachineError when it cannot be fetched.
    """
    source = source or DEFAULT
    place = Path(source).expanduser()
    network = _from_file(place) if place.is_file() else _from_folder(_folder(source, place))
    depth = int(network.config.num_hidden_layers)
    if blocks and max(blocks) >= depth:
        raise UserError(f"--discriminator-blocks {max(blocks)}: {source} has {depth} blocks, 0 ... {depth - 1}")
    return DinoFeatures(network, blocks or default_blocks(depth)).to(device)


def _folder(source: str, place: Path) -> Path:
    if place.is_dir():
        return place
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UserError(f"{_FLAG} {source} is no file or folder, and no hub id (owner/name) either")
    try:
        return hub_folder(source, _FLAG, FILES)
    except MachineError as error:
        raise MachineError(f"{error}; or train without it: --adversarial none") from error


def _from_folder(folder: Path) -> Any:
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise UserError(f"{_FLAG} {folder} holds no config.json: give a model folder as transformers saves it")
    with reading_model(folder, _FLAG):
        config = AutoConfig.from_pretrained(folder)
    if config.model_type != "vit":
        raise UserError(f"{_FLAG} {folder} is a {config.model_type}, not a ViT: give {DEFAULT} or another DINO")
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model.bin"))
    if not files:
        raise UserError(f"{_FLAG} {folder} holds no weights: save it with save_pretrained()")
    weights = {name: tensor for file in files for name, tensor in read_checkpoint(file).ema.items()}
    weights = {name.removeprefix("vit."): tensor for name, tensor in weights.items()}
    return _vit(config, weights, folder)


def _from_file(file: Path) -> Any:
    weights = read_checkpoint(file).ema
    with reading(file, _WHAT):
        renamed = dino_weights({name.removeprefix("backbone."): tensor for name, tensor in weights.items()})
        return vit_from(renamed, file)


def vit_from(dino: DinoWeights, file: Path = Path()) -> Any:
    """A ViTModel of transformers with the weights of DINO's authors. Raises UserError where some are missing."""
    from transformers import ViTConfig

    return _vit(ViTConfig(**dino.sizes), dict(dino.weights), file)  # type: ignore[arg-type]  # all of them are numbers


def _vit(config: Any, weights: dict[str, torch.Tensor], place: Path) -> Any:
    """The network, frozen, with the LayerNorm eps and the GELU that the discriminator was designed with."""
    import transformers

    hub_logging: Any = transformers.utils.logging
    hub_logging.set_verbosity_error()
    hub_logging.disable_progress_bar()
    config.layer_norm_eps, config.hidden_act = EPS, GELU
    loader: Any = transformers.ViTModel.from_pretrained
    with reading_model(place, _FLAG):
        network, report = loader(
            None, config=config, state_dict=weights, add_pooling_layer=False, output_loading_info=True
        )
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{_FLAG} {place} lacks weights ({missing[0]}, ...): fetch it again")
    return network.float().eval().requires_grad_(False)
