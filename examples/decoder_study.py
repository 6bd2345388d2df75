"""RAE's recipe for a decoder in miniature, with a random encoder and without a download.

Crops of 128 pixels of photographs that installed packages ship; a DINOv2 of two blocks with random weights, saved to
disk, makes 4 x 4 tokens of 192 numbers of each image of 64 pixels; a `tiny` decoder learns to invert it, by L1, then
also against a discriminator on a random ViT. The baseline is the best constant colour of each image. The tokens of a
random encoder are less robust to noise than DINOv2's, so the noise on latents is less than RAE's.

    python examples/decoder_study.py --steps 1500        # 10 minutes on two busy cores
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from photographs import photographs

from gmtool.console import ConsoleProgress, print_table
from gmtool.data.image_sets import find_images, spread
from gmtool.data.images import image_batches
from gmtool.reconstruction.quality import psnr
from gmtool.settings import make
from gmtool.stages.train_decoder.config import TrainDecoderConfig
from gmtool.stages.train_decoder.run import train_decoder

CROP, SIDE, HELD_OUT = 128, 64, 42
FLAT = 10
"""Deviation of the levels of a crop that has nothing to reconstruct."""


def write_crops(folder: Path) -> None:
    """All crops of all photographs that do not overlap."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, photograph in photographs().items():
        for top in range(0, photograph.height - CROP + 1, CROP):
            for left in range(0, photograph.width - CROP + 1, CROP):
                crop = photograph.crop((left, top, left + CROP, top + CROP))
                if np.asarray(crop).std() > FLAT:
                    crop.save(folder / f"{name}-{top:04d}-{left:04d}.png")


def write_networks(folder: Path) -> None:
    """A DINOv2 and the ViT of a discriminator, small, with random weights."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, ViTConfig, ViTModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 14}
    Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, image_size=56)).save_pretrained(folder / "encoder")
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 128}
    ViTModel(ViTConfig(**sizes, image_size=64, patch_size=8)).save_pretrained(folder / "vit")


def constant_colour(images: Path) -> float:
    """The mean PSNR in dB of each held-out image's mean colour, in its place."""
    image_set = find_images(images)
    batches = image_batches(image_set, SIDE, HELD_OUT, workers=0, rows=spread(len(image_set), HELD_OUT))
    pictures = torch.from_numpy(np.concatenate([batch.images for batch in batches]))
    mean = pictures.float().mean((2, 3), keepdim=True).round().expand_as(pictures)
    return float(psnr(mean, pictures).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("decoder-study"))
    options = parser.parse_args()
    root = options.folder
    if not (root / "vit").exists():
        write_crops(root / "photographs")
        write_networks(root)
    settings = {
        "tokenizer": str(root / "encoder"),
        "image_size": SIDE,
        "size": "tiny",
        "steps": options.steps,
        "batch_size": 16,
        "noise_tau": 0.2,
        "perceptual": "none",
        "discriminator_weights": str(root / "vit"),
        "warmup": 50,
        "ema": (0.99,),
        "hold_out": HELD_OUT,
        "preview_every": max(1, options.steps // 3),
        "eval_every": max(1, options.steps // 6),
        "device": "cpu",
        "seed": options.seed,
    }
    train_decoder(root / "photographs", root / "decoder", make(TrainDecoderConfig, settings), ConsoleProgress())
    constant = constant_colour(root / "photographs")
    lines = [json.loads(line) for line in (root / "decoder" / "metrics.jsonl").read_text().splitlines()]
    rows = [
        (f"{line['step']:,}", f"{line['held_out_psnr']:.2f}", f"{line['held_out_psnr'] - constant:+.2f}")
        for line in lines
        if "held_out_psnr" in line
    ]
    print_table(
        f"PSNR in dB of {HELD_OUT} held-out crops; the best constant colour: {constant:.2f}",
        ("step", "PSNR", "over the constant"),
        rows,
    )


if __name__ == "__main__":
    main()
