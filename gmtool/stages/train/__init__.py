"""``gmtool train``: latents to a run."""
