"""A load-balancing director for Direct Routing."""

__version__ = "0.1.0"
