"""Judging a trained model on held-out episodes: each kind of evaluation writes one typed scorecard."""
