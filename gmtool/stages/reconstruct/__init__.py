"""``gmtool reconstruct``: how well a tokenizer and its decoder give images back."""
