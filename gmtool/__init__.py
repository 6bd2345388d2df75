"""gmtool: train and sample image generators with Gaussian mixtures in a flow-matching model."""

__version__ = "0.2.0"
