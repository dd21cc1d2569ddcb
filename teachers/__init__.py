"""Teachers: noise schedules, the denoiser interface, the training objective, loading and solvers."""
