"""Numbers that show what latents are like: collapse, geometry, and how far imagination can be trusted."""

import torch
from torch import Tensor

from models.regularizers import random_directions, sigreg, sigreg_null


def covariance_spectrum(z_ND: Tensor) -> Tensor:
    """Eigenvalues (D,) of the latents' covariance in float64, largest first."""
    centred = z_ND.double() - z_ND.double().mean(dim=0)
    return torch.linalg.eigvalsh(centred.T @ centred / max(1, len(z_ND) - 1)).flip(0).clamp_min_(0)


def effective_rank(z_ND: Tensor) -> float:
    """exp(entropy of the normalised covariance spectrum), 1 to D, or 0 for constant latents (Roy and Vetterli 2007)."""
    spectrum = covariance_spectrum(z_ND)
    if spectrum.sum() == 0:
        return 0.0
    share = spectrum / spectrum.sum()
    share = share[share > 0]
    return float(torch.exp(-(share * share.log()).sum()))


def gaussianity(z_ND: Tensor, *, directions: int = 256, seed: int = 0) -> tuple[float, float]:
    """The SIGReg statistic of all latents together, and its null value: what N(0, I) samples give on average."""
    drawn = random_directions(z_ND.shape[1], directions, seed=seed, step=0, device=z_ND.device, dtype=z_ND.dtype)
    return float(sigreg(z_ND[:, None], drawn)), sigreg_null()


def straightness(z_BJD: Tensor) -> float:
    """Mean cosine between consecutive latent velocities, -1 to 1; 1 for straight paths (LeWM, appendix H)."""
    velocity = z_BJD.float().diff(dim=1)
    return float(torch.cosine_similarity(velocity[:, 1:], velocity[:, :-1], dim=-1).mean())


def error_by_horizon(imagined_BHD: Tensor, real_BHD: Tensor, start_BD: Tensor) -> Tensor:
    """Mean squared error (2, H) at every horizon: of imagination, and of staying at `start_BD`, its baseline."""
    imagined = (imagined_BHD - real_BHD).square().mean(dim=(0, 2))
    return torch.stack([imagined, (start_BD[:, None] - real_BHD).square().mean(dim=(0, 2))])


def retrieval(imagined_ND: Tensor, real_ND: Tensor) -> tuple[float, float]:
    """How well imagined latents find their own real ones among all N: share of nearest ones right, and mean rank (1 is
    best; (N + 1) / 2 is chance)."""
    distance_NN = torch.cdist(imagined_ND.double(), real_ND.double(), compute_mode="donot_use_mm_for_euclid_dist")
    own = distance_NN.diagonal()[:, None]
    # A tie counts against: collapsed latents find nothing, and neither do latents that are NaN.
    rank = (len(distance_NN) - (distance_NN > own).sum(dim=1)).double()
    return float((rank == 1).double().mean()), float(rank.mean())
