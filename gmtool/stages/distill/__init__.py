"""``gmtool distill``: a run to a student of few network evaluations."""
