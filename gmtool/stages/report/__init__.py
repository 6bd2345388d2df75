"""``gmtool report``: one page that shows artifacts, and how they hang together."""
