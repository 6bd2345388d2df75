"""Images to latents and back."""

from __future__ import annotations


def published_shape(tokenizer: str, image_size: int) -> tuple[int, int, int] | None:
    """(C, H, W) of the latents of a default model; None for other models, whose files tell it."""
    return {
        "dinov2": (768, image_size // 16, image_size // 16),
        "sd-vae": (4, image_size // 8, image_size // 8),
    }.get(tokenizer)
