"""``gmtool encode``: images to a latents file."""
