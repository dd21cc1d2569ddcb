"""A run's stages: what each makes, and its manifest."""
