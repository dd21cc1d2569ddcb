"""Measuring: generation from any sampler, features, metrics, references, timing and the report."""
