"""``gmtool fit-gmm``: a latents file to a fitted mixture."""
