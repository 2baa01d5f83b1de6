"""`solve`: one plan for each of E environments, whichever planner.

Every environment has its own generator and nothing is computed across environments, so planning one or fifty at once
gives each the same plan, up to the rounding of the dynamics' matrix products. All noise of a solve is drawn before its
search; the search has fixed shapes and never waits for the device, so it can be captured as it is (`graph`).
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from models.planners import cem, icem, mppi
from models.planners.cem import CEMConfig
from models.planners.icem import ICEMConfig
from models.planners.mppi import MPPIConfig
from models.planners.problem import Bounds, Dynamics, Evaluate, Objective, Solution, Start, WarmStart
from models.precision import at_least_float32

PlannerConfig = CEMConfig | ICEMConfig | MPPIConfig

_NAMES: dict[type[PlannerConfig], str] = {CEMConfig: "cem", ICEMConfig: "icem", MPPIConfig: "mppi"}


def planner_name(config: PlannerConfig) -> str:
    """`cem`, `icem` or `mppi`."""
    return _NAMES[type(config)]


@torch.no_grad()
def solve(
    objective: Objective,
    dynamics: Dynamics,
    z: Tensor,
    *,
    config: PlannerConfig,
    mean_K: Tensor,
    std_K: Tensor,
    bounds: Bounds,
    generators: Sequence[torch.Generator],
    warm_start: WarmStart | None = None,
    past: Tensor | None = None,
    decisions: int = 1,
) -> Solution:
    """Plans (E, horizon, K) of raw actions for environments whose known latents are `z`, (E, T, D) or (E, D) for one.

    The search starts from N(mean_K, std_K), the distribution of the training actions tiled to a block, or from the mean
    of a warm start, whose missing blocks are `mean_K`. `generators` holds one generator an environment, on the latents'
    device; `past` the T - 1 raw blocks (E, T - 1, K) between the known latents. A block is `decisions` actions, which
    only coloured noise needs to know. `Solution.checked` tells whether a plan was found.
    """
    if z.dim() == 2:
        z = z[:, None]
    check(config, z, mean_K, std_K, bounds, generators, past, decisions)
    noise = torch.empty(noise_shape(config, len(z), len(mean_K)), dtype=mean_K.dtype, device=z.device)
    draw(noise, generators)
    mean = starting_mean(config, mean_K, len(z), warm_start)
    elites = None if warm_start is None else warm_start.elites_EMHK
    return search(
        objective, dynamics, config, z, noise, mean, std_K, bounds=bounds, elites=elites, past=past, decisions=decisions
    )


def check(
    config: PlannerConfig,
    z_ETD: Tensor,
    mean_K: Tensor,
    std_K: Tensor,
    bounds: Bounds,
    generators: Sequence[torch.Generator],
    past: Tensor | None,
    decisions: int,
) -> None:
    """ValueError for what does not fit together."""
    environments, known, _ = z_ETD.shape
    if len(generators) != environments:
        raise ValueError(f"{environments} environments need as many generators, not {len(generators)}")
    shape = None if past is None else tuple(past.shape)
    if shape != (None if known == 1 else (environments, known - 1, len(mean_K))):
        raise ValueError(f"{known} known latents need {known - 1} past blocks of {len(mean_K)} numbers, not {shape}")
    if std_K.shape != mean_K.shape:
        raise ValueError(f"mean_K and std_K need the same shape, not {tuple(mean_K.shape)} and {tuple(std_K.shape)}")
    # Bounds in tensors are not looked at: that would wait for the device.
    if bounds is not None and not isinstance(bounds[0], Tensor) and not bounds[0] <= bounds[1]:
        raise ValueError(f"the lowest action must not be above the highest, as in bounds={bounds}")
    if decisions < 1 or len(mean_K) % decisions:
        raise ValueError(f"a block of {len(mean_K)} numbers is not {decisions} actions ({type(config).__name__})")


def noise_shape(config: PlannerConfig, environments: int, block: int) -> tuple[int, ...]:
    """All standard normals of a solve: every iteration's candidates, one after the other."""
    return environments, sum(config.populations), config.horizon, block


def draw(noise: Tensor, generators: Sequence[torch.Generator]) -> None:
    """Fill the noise, each environment's from its own generator."""
    for environment, generator in enumerate(generators):
        noise[environment].normal_(generator=generator)


def starting_mean(
    config: PlannerConfig, mean_K: Tensor, environments: int, warm_start: WarmStart | None = None
) -> Tensor:
    """The mean (E, H, K) that a search starts from."""
    mean = mean_K.expand(environments, config.horizon, len(mean_K))
    if warm_start is None:
        return mean
    if len(warm_start.mean_EHK) != environments:
        raise ValueError(f"a warm start of {len(warm_start.mean_EHK)} environments is not one of {environments}")
    left = min(warm_start.mean_EHK.shape[1], config.horizon)
    return torch.cat([warm_start.mean_EHK[:, :left], mean[:, left:]], dim=1)


def search(
    objective: Objective,
    dynamics: Dynamics,
    config: PlannerConfig,
    z_ETD: Tensor,
    noise: Tensor,
    mean_EHK: Tensor,
    std_K: Tensor,
    *,
    bounds: Bounds,
    elites: Tensor | None,
    past: Tensor | None,
    decisions: int,
) -> Solution:
    """The solve proper: a function of tensors that draws nothing, writes to none of its arguments and never waits."""
    evaluate = _evaluation(objective, dynamics, z_ETD, past, config.chunk)
    steps = noise.split(list(config.populations), dim=1)
    elites = None if elites is None or 0 in elites.shape else elites[:, :, : config.horizon]
    start = Start(mean_EHK, std_K.expand(mean_EHK.shape), bounds, elites)
    match config:
        case CEMConfig():
            return cem.search(config, evaluate, steps, start)
        case ICEMConfig():
            return icem.search(config, evaluate, steps, start, decisions=decisions)
        case MPPIConfig():
            return mppi.search(config, evaluate, steps, start)


def _evaluation(
    objective: Objective, dynamics: Dynamics, z_ETD: Tensor, past: Tensor | None, chunk: int | None
) -> Evaluate:
    """Costs of plans, `chunk` candidates of every environment at a time."""

    @cache
    def repeated(count: int) -> tuple[Tensor, Tensor | None]:
        return _rows(z_ETD, count), None if past is None else _rows(past, count)

    def evaluate(plans_ESHK: Tensor) -> Tensor:
        environments, samples, horizon, _ = plans_ESHK.shape
        costs = []
        for part in plans_ESHK.split(chunk or samples, dim=1):
            known, before = repeated(part.shape[1])
            z_NHD = at_least_float32(dynamics.rollout(known, part.flatten(0, 1), before))
            costs.append(objective(z_NHD.view(environments, part.shape[1], horizon, -1), part))
        cost_ES = torch.cat(costs, dim=1)
        return torch.where(torch.isfinite(cost_ES), cost_ES, torch.inf)

    return evaluate


def _rows(x: Tensor, count: int) -> Tensor:
    """Every environment's (E, ...) repeated for its candidates, (E * count, ...)."""
    return x[:, None].expand(-1, count, *x.shape[1:]).flatten(0, 1)
