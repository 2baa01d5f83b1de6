"""`Planner`: the same as `solve` for many solves of one shape, on a GPU as one CUDA graph.

A solve of 30 iterations launches thousands of small kernels, which take longer to launch than to run. The first call
with given shapes runs the search a few times, so that libraries and compilers get ready, and captures it; later calls
copy latents and targets into the captured buffers, draw the noise there with each environment's own generator, and
replay. On a CPU the same buffers are searched directly. Weights are read where they lie: training on in place is seen,
moving the model to another device or type is not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.planners.problem import Bounds, Dynamics, Objective, Solution, WarmStart
from models.planners.solve import PlannerConfig, check, draw, noise_shape, search, starting_mean

_WARM_UPS = 3


@dataclass(frozen=True, slots=True)
class _Captured:
    """Buffers of one shape and how to search them."""

    noise: Tensor
    inputs: tuple[Tensor, ...]
    run: Callable[[], Solution]


class Planner:
    """`planner(z, target, ..., generators=...)` is `solve(make_objective(target, ...), ...)`.

    Whatever of the objective changes between solves must be a target, for the rest is captured:
    `Planner(goal_objective, model, ...)` takes goal latents.
    """

    def __init__(
        self,
        make_objective: Callable[..., Objective],
        dynamics: Dynamics,
        *,
        config: PlannerConfig,
        mean_K: Tensor,
        std_K: Tensor,
        bounds: Bounds,
        decisions: int = 1,
    ) -> None:
        self.config = config
        self._make_objective, self._dynamics = make_objective, dynamics
        self._mean_K, self._std_K, self._bounds, self._decisions = mean_K, std_K, bounds, decisions
        self._captured: dict[object, _Captured] = {}

    @torch.no_grad()
    def __call__(
        self,
        z: Tensor,
        *targets: Tensor,
        generators: Sequence[torch.Generator],
        warm_start: WarmStart | None = None,
        past: Tensor | None = None,
    ) -> Solution:
        """As `solve`. The solution is the caller's own: the next call does not overwrite it."""
        if z.dim() == 2:
            z = z[:, None]
        check(self.config, z, self._mean_K, self._std_K, self._bounds, generators, past, self._decisions)
        mean = starting_mean(self.config, self._mean_K, len(z), warm_start)
        elites = None if warm_start is None or 0 in warm_start.elites_EMHK.shape else warm_start.elites_EMHK
        optional = tuple(each for each in (elites, past) if each is not None)
        inputs = (z, mean, *optional, *targets)
        key = (elites is None, past is None, *((each.shape, each.dtype, each.device) for each in inputs))
        if key not in self._captured:
            self._captured[key] = self._capture(inputs, elites is not None, past is not None)
        captured = self._captured[key]
        for buffer, value in zip(captured.inputs, inputs, strict=True):
            buffer.copy_(value)
        draw(captured.noise, generators)
        found = captured.run()
        return Solution(found.plan_EHK.clone(), found.cost_E.clone(), found.mean_EHK.clone(), found.elites_EMHK.clone())

    def _capture(self, inputs: tuple[Tensor, ...], has_elites: bool, has_past: bool) -> _Captured:
        buffers = tuple(each.clone(memory_format=torch.contiguous_format) for each in inputs)
        z, mean, *rest = buffers
        elites = rest.pop(0) if has_elites else None
        past = rest.pop(0) if has_past else None
        shape = noise_shape(self.config, len(z), len(self._mean_K))
        noise = torch.zeros(shape, dtype=self._mean_K.dtype, device=z.device)
        objective = self._make_objective(*rest)

        def run() -> Solution:
            return search(
                objective, self._dynamics, self.config, z, noise, mean, self._std_K, bounds=self._bounds,
                elites=elites, past=past, decisions=self._decisions,
            )  # fmt: skip

        return _Captured(noise, buffers, _graph(run) if z.device.type == "cuda" else run)


def _graph(run: Callable[[], Solution]) -> Callable[[], Solution]:
    """`run` captured: replaying writes into the same solution every time."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        solution = run()

    def replay() -> Solution:
        graph.replay()
        return solution

    return replay


class _Compiled:
    """A dynamics whose rollout is compiled for every shape by itself."""

    def __init__(self, dynamics: Dynamics) -> None:
        self._rollout = torch.compile(dynamics.rollout, dynamic=False)

    def rollout(self, z_BTD: Tensor, plan_BHK: Tensor, past_BPK: Tensor | None = None) -> Tensor:
        return self._rollout(z_BTD, plan_BHK, past_BPK)


def compiled(dynamics: Dynamics) -> Dynamics:
    """`dynamics` with `torch.compile`: fewer kernels, for seconds to minutes at the first solve of every shape."""
    return _Compiled(dynamics)
