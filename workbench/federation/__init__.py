"""Federated learning without the learning: virtual clocks, traces of who delivers when, re-weighting, and who holds which data."""
