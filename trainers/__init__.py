"""The training loop, Ray Train around it, checkpoints and evaluation."""
