"""What `lewm bench plan` times: models that plan, as published and tuned, with one solver and the same candidates.

A side is a model behind `encode` and `rollout`. `Published` is the way of the published code: float32, eager, one pass
over the whole window for every imagined step. `Tuned` is the model's own `rollout` in the device's fastest type, on a
GPU compiled and the search one CUDA graph. An `Episode` is a number of solves, each from a new frame to the same goal,
without a simulator; `Control` is one with a simulator.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from collectors.envs.base import Env
from models.dino_wm import DinoWM
from models.flops import forward_flops
from models.lewm import LeWM, LeWMConfig
from models.planners import CEMConfig, Planner, Solution, goal_objective, solve
from trainers.throughput import matmul_ceiling, synchronize

Model = LeWM | DinoWM


class Side(Protocol):
    """A model that plans."""

    model: Model
    dtype: torch.dtype
    tuned: bool
    """Whether the goal is encoded once an episode rather than once a solve, and the search is captured on a GPU."""

    def encode(self, frames: Tensor, /) -> Tensor: ...

    def rollout(self, z_BTD: Tensor, plan_BHK: Tensor, past_BPK: Tensor | None = None, /) -> Tensor: ...


class Published:
    """Repeated `predict` over the last frames, everything computed for every step."""

    dtype = torch.float32
    tuned = False

    def __init__(self, model: Model) -> None:
        self.model = model

    def encode(self, frames: Tensor) -> Tensor:
        return self.model.encode(frames)

    def rollout(self, z_BTD: Tensor, plan_BHK: Tensor, past_BPK: Tensor | None = None) -> Tensor:
        assert past_BPK is None, "the published planners start from one frame"
        latents = [z_BTD if z_BTD.dim() == 2 else z_BTD[:, 0]]
        for end in range(1, plan_BHK.shape[1] + 1):
            begin = max(0, end - self.model.config.history)
            window = torch.stack(latents[begin:], dim=1)
            latents.append(self.model.predict(window, plan_BHK[:, begin:end])[:, -1])
        return torch.stack(latents[1:], dim=1)


class Tuned:
    """The model's own `rollout` in `dtype`; the model is converted in place."""

    tuned = True

    def __init__(self, model: Model, dtype: torch.dtype) -> None:
        self.model, self.dtype = model.to(dtype), dtype
        compiled = model.pixel_mean.device.type == "cuda"
        self._rollout = torch.compile(model.rollout, dynamic=False) if compiled else model.rollout
        self._encode = torch.compile(model.encode, dynamic=False) if compiled else model.encode

    def encode(self, frames: Tensor) -> Tensor:
        return self._encode(frames).float()

    def rollout(self, z_BTD: Tensor, plan_BHK: Tensor, past_BPK: Tensor | None = None) -> Tensor:
        assert past_BPK is None, "an episode here has no frames before its first"
        return self._rollout(z_BTD.to(self.dtype), plan_BHK.to(self.dtype))


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """How both search: one in ten candidates is elite, as in the published 30 of 300."""

    candidates: int
    iterations: int
    horizon: int
    block: int
    """Numbers in an action block."""
    chunk: int | None = None
    """Candidates imagined at a time, where all at once leave the caches."""

    @property
    def config(self) -> CEMConfig:
        return CEMConfig(
            samples=self.candidates,
            iterations=self.iterations,
            elites=max(2, self.candidates // 10),
            horizon=self.horizon,
            chunk=self.chunk,
        )


Searcher = Callable[..., Solution]
"""Latents, goal latents and `generators=` to a solution."""


def searcher(side: Side, search: Search, device: torch.device) -> Searcher:
    """The solver of both sides. A tuned one is shared by groups of one size, which on a GPU share one graph."""
    mean_K, std_K = torch.zeros(search.block, device=device), torch.ones(search.block, device=device)
    if side.tuned:
        return Planner(goal_objective, side, config=search.config, mean_K=mean_K, std_K=std_K, bounds=None)

    def published(z: Tensor, z_goal: Tensor, *, generators: list[torch.Generator]) -> Solution:
        return solve(
            goal_objective(z_goal), side, z, config=search.config, mean_K=mean_K, std_K=std_K, bounds=None,
            generators=generators,
        )  # fmt: skip

    return published


class Group:
    """Environments that are planned for at once, whose frames are in `now` and `goal`, (E, ...) uint8.

    `first` encodes both, `again` only `now`, where the side keeps the goal's latents.
    """

    def __init__(
        self, side: Side, searcher: Searcher, frame: tuple[int, ...], environments: int, device: torch.device
    ) -> None:
        self.side, self._search = side, searcher
        self.now, self.goal = (
            torch.randint(0, 256, (environments, *frame), dtype=torch.uint8, device=device) for _ in range(2)
        )
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in range(environments)]
        self.again = self._again if side.tuned else self.first
        self._z_goal: Tensor | None = None

    @torch.inference_mode()
    def first(self) -> Tensor:
        """Plans (E, horizon, K)."""
        z, self._z_goal = self.side.encode(torch.cat([self.now, self.goal])).chunk(2)
        return self._search(z, self._z_goal, generators=self.generators).plan_EHK

    @torch.inference_mode()
    def _again(self) -> Tensor:
        assert self._z_goal is not None, "the first plan encodes the goal"
        return self._search(self.side.encode(self.now), self._z_goal, generators=self.generators).plan_EHK


class Episode:
    """A turn: `solves` plans for every environment. Calling it gives seconds a solve."""

    def __init__(
        self, side: Side, search: Search, frame: tuple[int, ...], *, environments: int, group: int, solves: int
    ):
        # Without a kept goal every solve is the same, and one stands for all.
        self.solves, self.device = solves if side.tuned else 1, side.model.pixel_mean.device
        sizes = [min(group, environments - begin) for begin in range(0, environments, group)]
        search_once = searcher(side, search, self.device)
        self.groups = [Group(side, search_once, frame, size, self.device) for size in sizes]

    def warm_up(self) -> None:
        """A solve of every shape, which fills caches; on a GPU it compiles and captures."""
        for each in {len(group.now): group for group in self.groups}.values():
            each.first()
            if self.solves > 1:
                each.again()

    def __call__(self) -> float:
        synchronize(self.device)
        began = time.perf_counter()
        for number in range(self.solves):
            for each in self.groups:
                each.first() if number == 0 else each.again()
        synchronize(self.device)
        return (time.perf_counter() - began) / self.solves


class Control:
    """A turn: an episode in a simulator, planned anew whenever a plan is used up. Calling it gives seconds of planning,
    encoding and the way to and from the device included; seconds of the simulator and of rendering are kept beside."""

    def __init__(self, env: Env, side: Side, config: LeWMConfig, search: Search, *, decisions: int) -> None:
        self.env, self.device = env, side.model.pixel_mean.device
        self.stack = config.stack
        frame = (config.stack, config.image_size, config.image_size, 3)
        self.solves = decisions // (search.horizon * config.frame_skip)
        self.simulator: list[float] = []
        self.rendering: list[float] = []
        env.reset(1)
        self.group = Group(side, searcher(side, search, self.device), frame, 1, self.device)
        self.goal = torch.from_numpy(np.stack([env.render()] * self.stack))

    def warm_up(self) -> None:
        """A solve of each kind, which fills caches; on a GPU it compiles and captures."""
        self.group.first()
        self.group.again()

    def __call__(self) -> float:
        planning = simulator = rendering = 0.0
        self.env.reset(0)
        frames = deque([self.env.render()] * self.stack, maxlen=self.stack)
        for number in range(self.solves):
            began = time.perf_counter()
            self.group.now.copy_(torch.from_numpy(np.stack(frames)))
            if number == 0:
                self.group.goal.copy_(self.goal)
            plan_HK = (self.group.first if number == 0 else self.group.again)()[0].cpu().numpy()
            planning += time.perf_counter() - began
            for action in plan_HK.reshape(-1, self.env.spec.action_size):
                began = time.perf_counter()
                self.env.step(action)
                stepped = time.perf_counter()
                frames.append(self.env.render())
                rendering += time.perf_counter() - stepped
                simulator += stepped - began
        self.simulator.append(simulator)
        self.rendering.append(rendering)
        return planning


@dataclass(frozen=True, slots=True)
class Cost:
    """Counted FLOPs of encoding a frame and of imagining one candidate."""

    encode: int
    rollout: int

    def solve(self, search: Search, *, encodings: float) -> float:
        return encodings * self.encode + search.candidates * search.iterations * self.rollout


def cost(make: Callable[[], Model], side: Callable[[Model], Side], frame: tuple[int, ...], search: Search) -> Cost:
    """Counted on the meta device, where nothing is computed."""
    with torch.device("meta"):
        counted = side(make().eval())
        frames = torch.empty(1, *frame, dtype=torch.uint8)
        z, plan = counted.encode(frames), torch.empty(1, search.horizon, search.block)
        return Cost(forward_flops(lambda: counted.encode(frames)), forward_flops(lambda: counted.rollout(z, plan)))


def narrow(config: LeWMConfig) -> LeWMConfig:
    """A model of the same layers and steps, so of the same kernels, with next to nothing to compute."""
    heads = config.encoder.heads
    return replace(
        config,
        image_size=2 * config.encoder.patch,
        latent_dim=16,
        encoder=replace(config.encoder, width=8 * heads, hidden=16, head_hidden=16),
        predictor=replace(config.predictor, heads=2, head_dim=8, hidden=16, head_hidden=16),
    )


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where a large matrix product is faster in it: not on a CPU that has to emulate it."""
    half, full = (matmul_ceiling(device, dtype) for dtype in (torch.bfloat16, torch.float32))
    return torch.bfloat16 if half > full else torch.float32
