"""Fitting the control heads on a frozen LeWM's latents: rewards, values and a policy prior, from recorded episodes.

Latents of all training episodes are kept in memory (1 KB each at 256-d). Heads learn on windows of real latents and,
half of the time, on windows whose newest latents are the model's own predictions, which is what a planner will ask
them about. Values are expectiles of lambda-returns, refreshed as they are learned: of what the better episodes got, not
the mean one (IQL, arXiv 2110.06169, section 4). The prior imitates recorded actions, weighted by how much better than
the value they turned out (AWR, arXiv 1910.00177), or, where an episode has them, an expert's labels as they are.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from models.control import ControlHeads, HeadsConfig
from models.lewm import LeWM
from shards.atomic import write_atomically
from trainers.evaluation.latents import observations

_CHUNK = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadsTraining:
    """How the heads are fitted."""

    heads: HeadsConfig = field(default_factory=HeadsConfig)
    steps: int = 2000
    batch_size: int = 256
    lr: float = 1e-3
    trace: float = 0.95
    """Lambda of the returns, a decision."""
    expectile: float = 0.8
    temperature: float = 0.1
    """Of the prior's weights, in spreads of the advantage."""
    depth: int = 3
    """Blocks that predicted latents are ahead of real ones, at most."""
    refresh: int = 20
    """How often returns are computed anew."""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.depth, self.refresh) < 1 or self.steps < self.refresh:
            raise ValueError(f"steps, batch_size, depth and refresh must be at least 1, and steps >= refresh: {self}")
        if not 0.5 <= self.expectile < 1:
            raise ValueError(f"the expectile must be from 0.5 to below 1, not {self.expectile}")


@dataclass(frozen=True, slots=True)
class Trajectory:
    """An episode as a frozen model sees it: latents (T+1, D), raw actions (T, A), rewards (T,); `labels` (T, A) are an
    expert's actions in the same states, where they are known."""

    z: Tensor
    action: Tensor
    reward: Tensor
    labels: Tensor | None = None


@torch.no_grad()
def encode_frames(model: LeWM, frames: np.ndarray) -> Tensor:
    """Latents (T+1, D) of all frames (T+1, h, w, 3) of an episode, on the model's device; the first frame stands for
    those before it."""
    device = model.pixel_mean.device
    parts = [
        model.encode(torch.from_numpy(observations(frames, np.arange(begin, end), model.config)).to(device))
        for begin in range(0, len(frames), _CHUNK)
        for end in [min(begin + _CHUNK, len(frames))]
    ]
    return torch.cat(parts).float()


def fit_heads(
    model: LeWM,
    trajectories: Sequence[Trajectory],
    config: HeadsTraining,
    *,
    seed: int,
    prior_only: bool = False,
    on_progress: Callable[[int, dict[str, float]], None] | None = None,
) -> ControlHeads:
    """Heads for a frozen `model`, in evaluation mode; ValueError when no episode is longer than a block.

    With `prior_only` rewards and values are not fitted, which takes a third of the time: for a prior that only imitates
    labels, which every trajectory must then have.
    """
    assert not prior_only or all(each.labels is not None for each in trajectories)
    data = _Data(model, trajectories, config, predict=not prior_only)
    device = data.z.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = ControlHeads(config.heads, latent_dim=data.z.shape[1], action_block=data.block * data.action.shape[1])
    heads = heads.to(device)
    heads.set_statistics(data.z, max(float(data.reward.abs().max()), 1e-6))
    generator = torch.Generator(device).manual_seed(seed)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=config.lr, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.steps, pct_start=0.1)
    returns = spread = torch.empty(0)
    every = config.steps // config.refresh
    for step in range(config.steps):
        if step % every == 0 and not prior_only:
            values = data.values(heads)
            returns = data.returns(values, config)
            spread = (returns - values).std().clamp_min(1e-6)
        rows = torch.randint(len(data.rows), (config.batch_size,), generator=generator, device=device)
        at = data.rows[rows]
        depth = torch.randint(-config.depth, config.depth + 1, (), generator=generator, device=device)
        if prior_only:
            losses = {"prior": (heads.prior(data.windows(at, 0)) - data.targets[at]).square().mean()}
        else:
            losses = _losses(heads, data, at, int(depth.clamp_min(0)), returns, spread, config)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        schedule.step()
        if on_progress is not None and (step + 1) % 100 == 0:
            on_progress(step + 1, {name: float(loss.detach()) for name, loss in losses.items()})
    return heads.eval()


def _losses(
    heads: ControlHeads,
    data: "_Data",
    at: Tensor,
    depth: int,
    returns: Tensor,
    spread: Tensor,
    config: HeadsTraining,
) -> dict[str, Tensor]:
    """Losses of the windows that end at the frames `at` (B,), the newest `depth` blocks of them predicted."""
    scale = heads.reward_scale
    real, imagined = data.windows(at, 0), data.windows(at, depth)
    reward = heads.reward(imagined) / scale / data.block
    value_scale = scale / (1 - heads.config.discount)
    error = (returns[at] - heads.value(imagined)) / value_scale
    weight = torch.where(error > 0, config.expectile, 1 - config.expectile)
    advantage = (returns[at] - heads.value(real).mean(dim=0).detach()) / spread
    liking = torch.where(data.labelled[at], 1.0, (advantage / config.temperature).clamp(max=3.0).exp() / np.exp(3.0))
    imitation = (heads.prior(real) - data.targets[at]).square().mean(dim=1)
    return {
        "reward": (reward - data.gained[at] / scale / data.block).square().mean(dim=1).sum(),
        "value": (weight * error.square()).mean(dim=1).sum(),
        "prior": (liking * imitation).sum() / liking.sum().clamp_min(1e-6),
    }


class _Data:
    """All trajectories, one after the other, by frame: `z` (N, D), `action` and `reward` that follow each frame (zero
    after the last), `gained` (N,) by the block before it, `targets` (N, K) of the prior; `rows` are the frames with a
    block before and a block after them."""

    def __init__(
        self, model: LeWM, trajectories: Sequence[Trajectory], config: HeadsTraining, *, predict: bool = True
    ) -> None:
        self.block, window = model.config.frame_skip, config.heads.window
        usable = [each for each in trajectories if len(each.action) >= 2 * self.block]
        if not usable:
            raise ValueError(f"no episode has the {2 * self.block} decisions that the heads need: collect longer ones")
        lengths = [len(each.z) for each in usable]
        self.first = np.cumsum([0, *lengths])
        self.z = torch.cat([each.z for each in usable])
        device = self.z.device
        pad = torch.zeros(1, usable[0].action.shape[1], device=device)
        self.action = torch.cat([torch.cat([each.action, pad]) for each in usable])
        self.reward = torch.cat([torch.cat([each.reward, pad[0, :1]]) for each in usable])
        # The prior's weights prefer labels; an episode without them speaks for itself when there are none at all.
        wanted = [each.action if each.labels is None else each.labels for each in usable]
        steps = torch.cat([torch.cat([each, pad]) for each in wanted])
        labelled = torch.cat([torch.full((len(each.z),), each.labels is not None) for each in usable]).to(device)
        self.labelled = labelled
        begin = torch.as_tensor(np.repeat(self.first[:-1], lengths), device=device)
        end = torch.as_tensor(np.repeat(self.first[1:] - 1, lengths), device=device)
        here = torch.arange(len(self.z), device=device)
        offsets = torch.arange(self.block, device=device)
        self.targets = steps[(here[:, None] + offsets).clamp_max(len(steps) - 1)].flatten(1)
        sums = torch.cat([self.reward.new_zeros(1), self.reward.double().cumsum(0).float()])
        self.gained = sums[here] - sums[(here - self.block).clamp_min(0)]
        self.back = torch.arange(window - 1, -1, -1, device=device) * self.block
        self.begin = begin
        self.rows = here[(here - begin >= self.block) & (here + self.block <= end)]
        self.predicted = [self.z, *(self._predict(model, config.depth, end) if predict else ())]

    def windows(self, at: Tensor, depth: int) -> Tensor:
        """(B, W, D): the latents up to frames `at`, a block apart; what lies after the frame `depth` blocks before is
        predicted from there. Frames before the first are the first."""
        index = torch.maximum(at[:, None] - self.back, self.begin[at][:, None])
        window = self.z[index].clone()
        start = at - depth * self.block
        for back in range(min(depth, window.shape[1])):
            known = start >= self.begin[at]
            imagined = self.predicted[depth - back][at - back * self.block]
            window[:, -1 - back] = torch.where(known[:, None], imagined, window[:, -1 - back])
        return window

    @torch.no_grad()
    def values(self, heads: ControlHeads) -> Tensor:
        """(N,): of every frame's window."""
        every = torch.arange(len(self.z), device=self.z.device)
        return torch.cat([heads.value(self.windows(part, 0)).mean(dim=0) for part in every.split(8 * _CHUNK)])

    def returns(self, values: Tensor, config: HeadsTraining) -> Tensor:
        """(N,): lambda-returns; an episode that ends for want of time goes on with its last value."""
        discount, reward, value = config.heads.discount, self.reward.cpu().numpy(), values.cpu().numpy()
        result = value.copy()
        for first, after in zip(self.first[:-1], self.first[1:], strict=True):
            following = value[after - 1]
            for t in range(after - 2, first - 1, -1):
                following = reward[t] + discount * ((1 - config.trace) * value[t + 1] + config.trace * following)
                result[t] = following
        return torch.as_tensor(result, device=values.device)

    @torch.no_grad()
    def _predict(self, model: LeWM, depth: int, end: Tensor) -> list[Tensor]:
        """For d = 1 .. depth, (N, D): every frame as predicted from d blocks before it, with the recorded actions."""
        found = [self.z.clone() for _ in range(depth)]
        block, every = self.block, torch.arange(len(self.z), device=self.z.device)
        offsets = torch.arange(depth * block, device=self.z.device)
        known, width = model.config.history - 1, block * self.action.shape[1]
        early = every - self.begin < known * block
        for part, past in [
            (part, blocks)
            for rows, blocks in ((every[early], 0), (every[~early], known))
            for part in rows.split(4 * _CHUNK)
        ]:
            plan = self.action[(part[:, None] + offsets).clamp_max(len(self.action) - 1)].view(len(part), depth, width)
            back = torch.arange(-past, 1, device=part.device) * block
            steps = torch.arange(-past * block, 0, device=part.device)
            blocks = self.action[part[:, None] + steps].view(len(part), past, width)
            imagined = model.rollout(self.z[part[:, None] + back], plan, blocks)
            for d in range(1, depth + 1):
                inside = part + d * block <= end[part]
                found[d - 1][part[inside] + d * block] = imagined[inside, d - 1].float()
        return found


def save_heads(heads: ControlHeads, path: Path) -> None:
    """Write `path` (safetensors): the weights, and the configuration as metadata."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in heads.state_dict().items()}
    about = {"config": json.dumps(asdict(heads.config)), "latent_dim": str(len(heads.z_mean))}
    about["action_block"] = str(len(heads.get_parameter("actions.6.bias")))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(tensors, metadata=about))


def load_heads(path: Path, device: torch.device) -> ControlHeads:
    """Heads that `save_heads` wrote, in evaluation mode; ValueError where there are none."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: `lewm control` fits and writes the heads")
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    config = HeadsConfig(**json.loads(about["config"]))
    heads = ControlHeads(config, latent_dim=int(about["latent_dim"]), action_block=int(about["action_block"]))
    heads.load_state_dict(load_file(path))
    return heads.to(device).eval()
