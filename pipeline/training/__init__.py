"""The training loop and what it stands on: checkpoints, average, log, randomness, signals."""
