"""LeWM: encoders, predictors, regularizers and planners, as plain torch that never sees a file.

Tensor names carry their shape as a suffix. Legend for the whole package: B batch, J observations of a window
(history + 1), H history or planning horizon, n stacked frames, C channels, D latent, K action block (frame_skip * A),
S planner samples, N all latents of a batch (B * J).
"""
