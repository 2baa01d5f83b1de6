"""Heads on frozen latents, for tasks with a reward: what LeWM, which is trained without one, needs to be asked for it.

Every head reads a short window of latents, one action block apart, the newest last: one latent may not show what is
about to happen. `reward` and `value` are ensembles, whose spread tells where they guess; `value` is what is to come
after the window, discounted a decision at a time; `prior` is the block of actions that a good policy takes. A plan is
worth the rewards that it is imagined to bring and the value where it ends, beyond those of the prior's own plan, and
less where the ensemble disagrees about that or the imagined latents leave the training data (after TD-MPC2, arXiv
2310.16828, section 3; LOMPO, arXiv 2012.11547, for the spread).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadsConfig:
    """Sizes of the heads, and the discount that the value means."""

    window: int = 2
    """W: latents that a head reads."""
    hidden: int = 256
    members: int = 3
    """Of the ensembles of rewards and of values."""
    discount: float = 0.99
    """A decision."""

    def __post_init__(self) -> None:
        if self.window < 1 or self.members < 2:
            raise ValueError(f"heads need a window of 1 or more and 2 or more members, not {self}")
        if not 0 < self.discount < 1:
            raise ValueError(f"the discount must be between 0 and 1, not {self.discount}")


class ControlHeads(nn.Module):
    """Reward ensemble, value and policy prior over windows (B, W, D) of raw latents."""

    z_mean: Tensor
    z_std: Tensor
    reach: Tensor
    reward_scale: Tensor

    def __init__(self, config: HeadsConfig, *, latent_dim: int, action_block: int) -> None:
        super().__init__()
        self.config = config
        width = config.window * latent_dim
        self.rewards = nn.ModuleList(_mlp(width, config.hidden, 1) for _ in range(config.members))
        self.values = nn.ModuleList(_mlp(width, config.hidden, 1) for _ in range(config.members))
        self.actions = _mlp(width, config.hidden, action_block)
        self.register_buffer("z_mean", torch.zeros(latent_dim))
        self.register_buffer("z_std", torch.ones(latent_dim))
        self.register_buffer("reach", torch.ones(()))
        self.register_buffer("reward_scale", torch.ones(()))

    @torch.no_grad()
    def set_statistics(self, z_ND: Tensor, reward_scale: float) -> None:
        """Standardise by latents of the training data; `reach` is the mean square that 99.9 % of them stay under.
        `reward_scale` is the most that a decision gives."""
        self.z_mean.copy_(z_ND.mean(dim=0))
        self.z_std.copy_(z_ND.std(dim=0).clamp_min(1e-6))
        distance = ((z_ND - self.z_mean) / self.z_std).square().mean(dim=1)
        self.reach.copy_(distance.sort().values[int(0.999 * (len(distance) - 1))])
        self.reward_scale.fill_(reward_scale)

    def reward(self, z_BWD: Tensor) -> Tensor:
        """(M, B): each member's sum of rewards over the block of actions that led to the newest latent."""
        return self._opinions(self.rewards, z_BWD) * self.reward_scale

    def value(self, z_BWD: Tensor) -> Tensor:
        """(M, B): each member's discounted rewards from the newest latent on."""
        return self._opinions(self.values, z_BWD) * self.reward_scale / (1 - self.config.discount)

    def prior(self, z_BWD: Tensor) -> Tensor:
        """(B, K): the block of raw actions, in (-1, 1)."""
        return torch.tanh(self.actions(self._features(z_BWD)))

    def excess(self, z_BWD: Tensor) -> Tensor:
        """(B,): how far the newest latent is outside the training data, 0 within `reach`."""
        return (self._standardised(z_BWD[:, -1]).square().mean(dim=-1) / self.reach - 1).clamp_min(0)

    def _opinions(self, members: nn.ModuleList, z_BWD: Tensor) -> Tensor:
        x = self._features(z_BWD)
        return torch.stack([member(x)[..., 0] for member in members])

    def _standardised(self, z: Tensor) -> Tensor:
        return (z - self.z_mean) / self.z_std

    def _features(self, z_BWD: Tensor) -> Tensor:
        return self._standardised(z_BWD).flatten(-2)


@dataclass(frozen=True, slots=True)
class RewardObjective:
    """Costs (E, S) of imagined latents (E, S, H, D): minus the discounted reward, value at the end included.

    `known_EWD` holds the W - 1 latents before the present one and the present one itself, a block apart. With the
    latents (E, H, D) of a plan to beat, costs are relative to it, so that the ensemble is asked what it can know: which
    of two plans is better, not how good either is.
    """

    heads: ControlHeads
    known_EWD: Tensor
    block: int
    """Decisions a block."""
    beat_EHD: Tensor | None = None
    disagreement: float = 1.0
    """Reward subtracted for each standard deviation of the ensemble."""
    outside: float = 1.0
    """Reward subtracted, in units of the most that a block gives, for a latent twice as far out as the data reach."""

    def __call__(self, z_ESHD: Tensor, plan_ESHK: Tensor | None = None) -> Tensor:
        gained = self._gained(z_ESHD)
        if self.beat_EHD is not None:
            gained = gained - self._gained(self.beat_EHD[:, None])
        return self.disagreement * gained.std(dim=0) - gained.mean(dim=0)

    def _gained(self, z_ESHD: Tensor) -> Tensor:
        """(M, E, S): what each member expects of a plan."""
        environments, samples, horizon, _ = z_ESHD.shape
        window, discount = self.heads.config.window, self.heads.config.discount**self.block
        known = self.known_EWD[:, None, 1 - window :] if window > 1 else self.known_EWD[:, None, :0]
        path = torch.cat([known.expand(-1, samples, -1, -1), z_ESHD], dim=2)
        windows = path.unfold(2, window, 1).movedim(-1, -2)
        powers = discount ** torch.arange(horizon + 1, device=z_ESHD.device)
        last = windows[:, :, -1].flatten(0, 1)
        windows = windows.flatten(0, 2)
        rewards = self.heads.reward(windows)
        rewards = rewards - self.outside * self.block * self.heads.reward_scale * self.heads.excess(windows)
        shape = (len(rewards), environments, samples)
        return (rewards.view(*shape, horizon) * powers[:-1]).sum(dim=-1) + powers[-1] * self.heads.value(last).view(
            shape
        )


def _mlp(fan_in: int, hidden: int, fan_out: int) -> nn.Sequential:
    """Two hidden layers, normalised; the last begins at zero, so that a head begins at no opinion."""
    last = nn.Linear(hidden, fan_out)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    layers: list[nn.Module] = []
    for width in (fan_in, hidden):
        layers += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.SiLU()]
    return nn.Sequential(*layers, last)
