"""``gmtool import``: a published network as a run."""
