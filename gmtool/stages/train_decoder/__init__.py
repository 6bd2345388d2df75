"""``gmtool train-decoder``: a decoder of an encoder's latents, from images."""
