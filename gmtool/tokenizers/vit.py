"""The vision transformers whose tokens can be latents, as transformers builds them: what differs between designs.

| design | dropped from the patches | descriptor | pixels |
| --- | --- | --- | --- |
| DINOv2, with or without registers; DINOv3 | [CLS], registers | [CLS] | ImageNet's mean and std |
| SigLIP, SigLIP 2, also its NaFlex form | nothing | its attention pooling, else the mean token | mean and std 1/2 |
| MAE | [CLS]; it masks nothing | [CLS] | ImageNet's mean and std |

Sizes, registers and pooling are read from the model's configuration, mean and std from its preprocessor's where there
is one. The last LayerNorm loses its scale and shift, also in front of the pooling, as in the public implementations of
RAE (Zheng et al., arXiv 2510.11690) and MM-FM. Position embeddings are interpolated by the networks themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.errors import UserError
from gmtool.tokenizers.pretrained import RECORDED, model_config, reading_model, recorded_model

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and std of the pixels of each colour, in [0, 1]."""
IMAGENET: Statistics = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF: Statistics = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

Arguments = Callable[[Tensor, int], Mapping[str, Any]]
"""What a network is called with, for normalised images (B, 3, h, w) and its patch size."""


def _plain(pixels: Tensor, _patch: int) -> Mapping[str, Any]:
    return {"pixel_values": pixels}


def _interpolated(pixels: Tensor, _patch: int) -> Mapping[str, Any]:
    return {"pixel_values": pixels, "interpolate_pos_encoding": True}


def _unmasked(pixels: Tensor, patch: int) -> Mapping[str, Any]:
    """Arguments of a masked autoencoder: patches stay in the order of ``noise``, which is their own."""
    count = (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch)
    order = torch.arange(count, dtype=torch.float32, device=pixels.device).expand(len(pixels), -1)
    return {**_interpolated(pixels, patch), "noise": order}


def _cut(pixels: Tensor, patch: int) -> Mapping[str, Any]:
    """Arguments of a NaFlex model: patches (B, N, patch * patch * 3), rows first and colours last, without padding."""
    rows = pixels.unfold(2, patch, patch).unfold(3, patch, patch)  # (B, 3, h', w', patch, patch)
    grid = torch.tensor(rows.shape[2:4], device=pixels.device).expand(len(pixels), -1)
    patches = rows.permute(0, 2, 3, 4, 5, 1).flatten(1, 2).flatten(2)
    mask = torch.ones(patches.shape[:2], dtype=torch.int64, device=pixels.device)
    return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": grid}


@dataclass(frozen=True)
class Design:
    """Vision transformers of one kind.

    network: their class in transformers. norm: its attribute for the last LayerNorm. arguments: of a call.
    class_token: whether the first token is [CLS]. statistics: of pixels, for a model without a preprocessor's file.
    """

    network: str
    norm: str
    arguments: Arguments
    class_token: bool
    statistics: Statistics


_SIGLIP = Design("SiglipVisionModel", "post_layernorm", _interpolated, False, HALF)
_NAFLEX = Design("Siglip2VisionModel", "post_layernorm", _cut, False, HALF)
DESIGNS: Mapping[str, Design] = {
    "dinov2": Design("Dinov2Model", "layernorm", _plain, True, IMAGENET),
    "dinov2_with_registers": Design("Dinov2WithRegistersModel", "layernorm", _plain, True, IMAGENET),
    "dinov3_vit": Design("DINOv3ViTModel", "norm", _plain, True, IMAGENET),
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "siglip2": _NAFLEX,
    "siglip2_vision_model": _NAFLEX,
    "vit_mae": Design("ViTMAEModel", "layernorm", _unmasked, True, IMAGENET),
}
"""By what ``config.json`` calls the model's type. A SigLIP's may hold its text model too, which is left out."""
KNOWN = "DINOv2, DINOv3, SigLIP or MAE"


@dataclass(frozen=True)
class VitFacts:
    """What a model's folder tells without its weights.

    kind: its ``model_type``. width: numbers of a token. blocks: their number. patch: side of a patch, in pixels.
    dropped: number of tokens in front of the patches. pools: whether it has a pooling of its own. statistics: mean and
    std of the pixels. config: all of it, as transformers reads it.
    """

    kind: str
    width: int
    blocks: int
    patch: int
    dropped: int
    pools: bool
    statistics: Statistics
    config: Any

    @property
    def design(self) -> Design:
        """What it is built like."""
        return DESIGNS[self.kind]


def read_facts(folder: Path, role: str) -> VitFacts:
    """The facts of a model folder. role: what it serves as, for messages.

    Raises UserError when it holds another kind of model, or one that the installed transformers does not have, or is
    damaged.
    """
    import transformers

    record = model_config(folder, role)
    kind = str(record.get("model_type"))
    if kind not in DESIGNS:
        raise UserError(f"{role} {folder} is {a_model(record)}, no {KNOWN}: give the folder or hub id of one of these")
    design = DESIGNS[kind]
    network = getattr(transformers, design.network, None)
    if network is None:
        raise UserError(f"{role} {folder} needs a newer transformers than {transformers.__version__}: upgrade it")
    with reading_model(folder, role):
        config = network.config_class.from_pretrained(folder)
        patch = config.patch_size if isinstance(config.patch_size, int) else max(config.patch_size)
        registers = int(getattr(config, "num_register_tokens", 0))
        return VitFacts(
            kind,
            int(config.hidden_size),
            int(config.num_hidden_layers),
            int(patch),
            registers + design.class_token,
            bool(getattr(config, "vision_use_head", False)),
            _statistics(folder, design, role),
            config,
        )


def facts_of(spec: TokenizerSpec) -> VitFacts:
    """The facts of the encoder that a tokenizer's record names; raises as `read_facts` and `recorded_model` do."""
    return read_facts(recorded_model(spec.settings, pickled=True), RECORDED)


def a_model(record: Mapping[str, Any]) -> str:
    """The kind of model that a configuration names, with an indefinite article, for messages."""
    kind = record.get("model_type") or record.get("_class_name") or "model of an unknown kind"
    return f"{'an' if str(kind)[0].lower() in 'aeiou' else 'a'} {kind}"


def load_vit(folder: Path, facts: VitFacts, role: str) -> Any:
    """The network of a folder, float32 and frozen, its last LayerNorm without scale and shift.

    Raises UserError when weights are missing or damaged.
    """
    import transformers

    hub_logging: Any = transformers.utils.logging
    hub_logging.set_verbosity_error()
    hub_logging.disable_progress_bar()
    config, design = facts.config, facts.design
    safe = any(folder.glob("*.safetensors"))
    if hasattr(config, "mask_ratio"):
        config.mask_ratio = 0.0
    with reading_model(folder, role):
        network, report = getattr(transformers, design.network).from_pretrained(
            folder, config=config, use_safetensors=safe, weights_only=True, output_loading_info=True
        )
    if report["missing_keys"]:
        raise UserError(f"{role} {folder} lacks weights ({sorted(report['missing_keys'])[0]}, ...): save it again")
    norm = nn.LayerNorm(facts.width, eps=config.layer_norm_eps, elementwise_affine=False)
    setattr(_body(network), design.norm, norm)
    return network.float().eval().requires_grad_(False)  # whatever type the file has, and a version's default is


def final_norm(network: Any, facts: VitFacts) -> nn.Module:
    """The network's last LayerNorm."""
    norm: nn.Module = getattr(_body(network), facts.design.norm)
    return norm


def _body(network: Any) -> Any:
    """The module that holds the last LayerNorm, which earlier versions of transformers wrap in another one."""
    return getattr(network, "vision_model", network)


def _statistics(folder: Path, design: Design, role: str) -> Statistics:
    """Mean and std of pixels that the network was trained with; its design's where the folder has none."""
    file = folder / "preprocessor_config.json"
    mean, std = design.statistics
    try:
        settings = json.loads(file.read_text()) if file.is_file() else {}
        mean = tuple(map(float, settings.get("image_mean", mean)))
        return mean, tuple(map(float, settings.get("image_std", std)))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{role} {file} is damaged ({error}): fetch the model again") from error
