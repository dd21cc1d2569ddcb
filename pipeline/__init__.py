"""The pipeline: configuration, data, the training loop, checkpoints, stages and the command line."""
