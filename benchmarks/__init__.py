"""Benchmarks of this project's speed, scaling and quality against the alternatives: `make bench`."""
