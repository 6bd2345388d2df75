"""Decoders of latents: how they are trained, and how well they reconstruct images."""
