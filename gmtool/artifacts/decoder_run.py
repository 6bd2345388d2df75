"""The folder that ``gmtool train-decoder`` writes: a decoder that diffusers reads, and the run that makes it.

decoder/config.json                          diffusers' configuration of an AutoencoderRAE
decoder/diffusion_pytorch_model.safetensors  the moving average of the weights, as of the last checkpoint
decoder/encoder.json                         the record of the tokenizer whose latents it decodes
decoder/training.json                        the manifest: settings, tokenizer, inputs
decoder/checkpoints/step-00001000/           as in a run, and discriminator.safetensors with its optimizer's state
decoder/metrics.jsonl, previews/, lock       as in a run
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gmtool.artifacts.manifest import RECORDS, Manifest, expect_kind, parse_manifest
from gmtool.artifacts.run import CHECKPOINTS, rewrite
from gmtool.errors import UserError

TRAINING = RECORDS["decoder"]
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
"""What diffusers reads."""
WEIGHTS_REPAIR = "restore a copy of it, or run `gmtool train-decoder` again: it writes those of the last checkpoint"
"""The remedy for damaged weights of a decoder."""


@dataclass(frozen=True)
class DecoderRun:
    """A decoder's folder, and the record of its training."""

    path: Path
    manifest: Manifest

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / CHECKPOINTS


def open_decoder_run(path: Path) -> DecoderRun:
    """Open a decoder's folder. Raises UserError when it is something else, or its record is damaged."""
    record = path / TRAINING
    if not record.is_file():
        raise UserError(f"{path} holds no {TRAINING}: give the folder that `gmtool train-decoder` writes")
    manifest = parse_manifest(record.read_bytes(), record)
    expect_kind(manifest, "decoder", path)
    return DecoderRun(path, manifest)


def create_decoder_run(path: Path, manifest: Manifest) -> DecoderRun:
    """Write the record of a new decoder's folder, which is made if need be. Raises OSError when the disk is full."""
    rewrite(path / TRAINING, manifest)
    return DecoderRun(path, manifest)


def update_decoder_settings(run: DecoderRun, settings: Mapping[str, Any]) -> DecoderRun:
    """The run with other settings in its record, such as more steps."""
    run = replace(run, manifest=replace(run.manifest, config=settings))
    rewrite(run.path / TRAINING, run.manifest)
    return run
