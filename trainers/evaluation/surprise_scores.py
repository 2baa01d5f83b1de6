"""How surprising every frame of a rollout is: scores from latents, and the baselines that they must beat.

With observations o_t, latents z_t of D dimensions, frame skip k and history H:

    prediction       mean (z_t - zhat_t)^2, zhat_t predicted from z_{t-Hk}, ..., z_{t-k} and the actions between them
    residual         the same error in units of its covariance on training episodes (Mahalanobis, / D)
    norm             | |z_t|^2 / D - 1 |: latents are trained towards N(0, I), where |z|^2 / D is about 1
    mahalanobis      (z_t - mu)' C^-1 (z_t - mu) / D, mu and C of training latents
    kl               KL(N(m, diag v) || N(0, I)) / D of the 8 latents up to t
    pixels           mean squared difference of frames t and t - k             (baseline)
    latents          mean (z_t - z_{t-k})^2                                     (baseline)
    no_actions       `prediction` by the same predictor told the mean action    (baseline)

The first two ask whether what happened follows from what was done, the next three whether what is seen is like
anything seen before. A score is NaN where its window would begin before the rollout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from models.lewm import LeWM
from models.regularizers import gaussian_kl_diagonal

Score = Literal["prediction", "residual", "norm", "mahalanobis", "kl", "pixels", "latents", "no_actions"]
SCORES: tuple[Score, ...] = get_args(Score)
BASELINES: tuple[Score, ...] = ("pixels", "latents", "no_actions")

KL_FRAMES = 8
_SHRINKAGE = 1e-3
"""Share of the mean variance that is added to every direction, so that one which training never filled counts."""


@dataclass(frozen=True, slots=True)
class Familiar:
    """Mean (D,) and inverse of the covariance (D, D) of what training episodes gave, float64."""

    mean: Tensor
    precision: Tensor

    @staticmethod
    def of(x_ND: Tensor) -> "Familiar":
        x = x_ND.double()
        mean = x.mean(dim=0)
        covariance = (x - mean).T @ (x - mean) / len(x)
        dim = len(covariance)
        scale = (covariance.trace() / dim).clamp_min(1e-12)
        return Familiar(
            mean, torch.linalg.inv(covariance + _SHRINKAGE * scale * torch.eye(dim, dtype=x.dtype, device=x.device))
        )

    def distance(self, x_ND: Tensor) -> Tensor:
        """Squared Mahalanobis distance (N,) over D."""
        centred = x_ND.double() - self.mean
        return torch.einsum("nd,de,ne->n", centred, self.precision, centred) / centred.shape[1]


@dataclass(frozen=True, slots=True)
class Scorer:
    """A model with what its latents and its errors are like on training episodes."""

    model: LeWM
    latents: Familiar
    residuals: Familiar

    @staticmethod
    @torch.no_grad()
    def fit(model: LeWM, rollouts: Sequence[tuple[Tensor, Tensor]]) -> "Scorer":
        """From (z (T, D), actions (T-1, A)) of training episodes, consecutive frames each."""
        residuals = [z[first_predicted(model) :] - predictions(model, z, action) for z, action in rollouts]
        return Scorer(model, Familiar.of(torch.cat([z for z, _ in rollouts])), Familiar.of(torch.cat(residuals)))

    @torch.no_grad()
    def scores(self, frames: np.ndarray, z_TD: Tensor, action: Tensor) -> dict[Score, np.ndarray]:
        """Every score (T,) of a rollout: frames (T, h, w, 3), latents (T, D), actions (T-1, A) as the model is told."""
        k, first = self.model.config.frame_skip, first_predicted(self.model)
        known = predictions(self.model, z_TD, action)
        blind = predictions(self.model, z_TD, self.model.action_mean.expand_as(action))
        z = z_TD.double()
        later = {
            "prediction": (z_TD[first:] - known).square().mean(dim=1),
            "residual": self.residuals.distance(z_TD[first:] - known),
            "norm": (z.square().mean(dim=1) - 1).abs(),
            "mahalanobis": self.latents.distance(z),
            "kl": torch.stack([gaussian_kl_diagonal(each.T[:, None]) for each in z.unfold(0, KL_FRAMES, 1)]),
            "latents": (z[k:] - z[:-k]).square().mean(dim=1),
            "no_actions": (z_TD[first:] - blind).square().mean(dim=1),
        }
        shown = frames.astype(np.float32)
        moved = np.square(shown[k:] - shown[:-k]).mean(axis=(1, 2, 3))
        arrays = {name: value.double().cpu().numpy() for name, value in later.items()} | {"pixels": moved}
        length = len(z_TD)
        return {name: np.concatenate([np.full(length - len(arrays[name]), np.nan), arrays[name]]) for name in SCORES}


def first_predicted(model: LeWM) -> int:
    """Latents of a rollout before the first one that a whole history predicts."""
    return model.config.history * model.config.frame_skip


def predictions(model: LeWM, z_TD: Tensor, action: Tensor) -> Tensor:
    """zhat (T - Hk, D) of z_{Hk}, ..., z_{T-1}, each from H latents k frames apart and the H blocks of actions."""
    k, history = model.config.frame_skip, model.config.history
    ends = torch.arange(first_predicted(model), len(z_TD), device=z_TD.device)
    begins = ends[:, None] - k * torch.arange(history, 0, -1, device=z_TD.device)  # (N, H)
    blocks = action[begins[:, :, None] + torch.arange(k, device=z_TD.device)].flatten(2)
    return model.predict(z_TD[begins], blocks)[:, -1]
