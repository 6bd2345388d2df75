"""``gmtool bench``: what this machine does in a second."""
