"""``gmtool sample``: a run to a folder of samples."""
