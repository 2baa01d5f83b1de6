"""Numbers that show whether latents have collapsed."""

import torch
from torch import Tensor


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
