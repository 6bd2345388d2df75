"""``gmtool sweep``: a grid of sampling settings, drawn and scored, to one table and its plots."""
