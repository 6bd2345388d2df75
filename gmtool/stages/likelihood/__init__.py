"""``gmtool likelihood``: the negative log-likelihood of held-out images or latents."""
