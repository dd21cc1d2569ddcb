"""Samplers of every kind: models, stock pipelines, exported graphs; images from them."""
