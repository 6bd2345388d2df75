"""``gmtool eval``: scores of samples."""
