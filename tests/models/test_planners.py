"""Every planner on problems with a known optimum, and that environments planned together do not touch each other."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.encoders import EncoderConfig
from models.lewm import LeWM, LeWMConfig
from models.planners import (
    REFERENCE_CEM,
    CEMConfig,
    Dynamics,
    ICEMConfig,
    MPPIConfig,
    Objective,
    Planner,
    PlannerConfig,
    Solution,
    compiled,
    goal_objective,
    solve,
    weighted_sum,
)
from models.predictors import PredictorConfig

CONFIGS: dict[str, PlannerConfig] = {
    "cem": CEMConfig(samples=200, iterations=15, elites=20, horizon=3),
    "icem": ICEMConfig(samples=200, iterations=15, elites=20, horizon=3, color=0.5),
    "mppi": MPPIConfig(samples=200, iterations=15, elites=20, horizon=3),
}
EVERY = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Products this small gain nothing from a second thread, and on a busy machine wait long for it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Linear:
    """z' = A z + B a, from the newest latent."""

    def __init__(self, a_DD: Tensor, b_DK: Tensor) -> None:
        self.a_DD, self.b_DK = a_DD, b_DK

    def rollout(self, z_BTD: Tensor, plan_BHK: Tensor, past_BPK: Tensor | None = None) -> Tensor:
        z, latents = z_BTD[:, -1], []
        for action in plan_BHK.unbind(dim=1):
            z = z @ self.a_DD.T + action @ self.b_DK.T
            latents.append(z)
        return torch.stack(latents, dim=1)


INTEGRATOR = Linear(torch.eye(2), torch.eye(2))
"""z' = z + a: a plan reaches the goal when its actions sum to goal - z."""


def plan(
    z: Tensor,
    objective: Objective,
    config: PlannerConfig,
    seeds: list[int],
    dynamics: Dynamics = INTEGRATOR,
    block: int = 2,
    **keywords,
) -> Solution:
    defaults = {"mean_K": torch.zeros(block), "std_K": torch.ones(block), "bounds": (-1.0, 1.0)}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return solve(objective, dynamics, z, config=config, generators=generators, **(defaults | keywords))


@EVERY
def test_reaches_a_goal_within_bounds(config):
    z, goal = torch.zeros(1, 2), torch.tensor([[1.5, -2.0]])
    solution = plan(z, goal_objective(goal), config, [0]).checked()
    torch.testing.assert_close(solution.plan_EHK.sum(dim=1), goal, rtol=0, atol=0.1)
    assert solution.plan_EHK.abs().max() <= 1
    assert solution.cost_E.item() < 0.01


@EVERY
def test_a_goal_out_of_reach_saturates_the_bounds(config):
    actions = plan(torch.zeros(1, 2), goal_objective(torch.tensor([[10.0, -10.0]])), config, [0]).plan_EHK
    torch.testing.assert_close(actions[0], torch.tensor([[1.0, -1.0]]).expand(3, 2), rtol=0, atol=0.05)


@EVERY
@pytest.mark.parametrize("bounds", [(-0.2, 0.1), (torch.tensor([-0.2, -0.1]), torch.tensor([0.3, 0.4]))])
def test_no_candidate_leaves_the_bounds(config, bounds):
    low, high = (torch.as_tensor(bound) for bound in bounds)

    def cost(z_ESHD: Tensor, plan_ESHK: Tensor) -> Tensor:
        assert (plan_ESHK >= low).all()
        assert (plan_ESHK <= high).all()
        return plan_ESHK.sum(dim=(2, 3))

    solution = plan(torch.zeros(2, 2), cost, config, [0, 1], bounds=bounds)
    again = plan(torch.zeros(2, 2), cost, config, [2, 3], bounds=bounds, warm_start=solution.after())
    for each in (solution, again):
        assert ((each.plan_EHK >= low) & (each.plan_EHK <= high)).all()


@EVERY
def test_no_bounds_means_none(config):
    goal = torch.tensor([[9.0, -9.0]])
    actions = plan(torch.zeros(1, 2), goal_objective(goal), config, [0], bounds=None, std_K=3 * torch.ones(2)).plan_EHK
    torch.testing.assert_close(actions.sum(dim=1), goal, rtol=0, atol=0.5)
    assert actions.abs().max() > 1


@EVERY
def test_linear_dynamics_and_a_quadratic_cost_give_the_least_squares_plan(config):
    """min |z_H - goal|^2 + r |a|^2 has one optimum: z_H = A^H z + sum A^(H-1-h) B a_h is linear in the plan."""
    torch.manual_seed(1)
    horizon, r = 4, 0.3
    a, b = torch.eye(3) + 0.2 * torch.randn(3, 3), torch.randn(3, 2)
    z, goal = torch.randn(2, 3), torch.randn(2, 3)
    steer = torch.cat([torch.linalg.matrix_power(a, horizon - 1 - h) @ b for h in range(horizon)], dim=1)
    free = goal - z @ torch.linalg.matrix_power(a, horizon).T
    best = torch.linalg.solve(steer.T @ steer + r * torch.eye(2 * horizon), (free @ steer).T).T.view(2, horizon, 2)
    optimum = (free - best.flatten(1) @ steer.T).square().sum(1) + r * best.square().sum(dim=(1, 2))
    objective = weighted_sum((1.0, goal_objective(goal)), (r, lambda z, plan: plan.square().sum(dim=(2, 3))))
    larger = replace(config, samples=500, elites=50, iterations=30, horizon=horizon)
    found = plan(z, objective, larger, [0, 1], Linear(a, b), bounds=None)
    torch.testing.assert_close(found.plan_EHK, best, rtol=0, atol=0.15)
    assert (found.cost_E >= optimum - 1e-4).all()
    torch.testing.assert_close(found.cost_E, optimum, rtol=0.02, atol=0.01)


def test_one_iteration_of_cem_is_the_reference_update():
    """Candidate 0 is the mean, nothing is clipped, the mean of the elites is returned; and its deviation has n - 1."""
    config, shape = CEMConfig(samples=6, iterations=2, elites=3, horizon=2), (6, 2, 2)
    mean, std, goal = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.5]), torch.tensor([[1.0, 2.0]])
    found = plan(torch.zeros(1, 2), goal_objective(goal), config, [7], mean_K=mean, std_K=std, bounds=None)
    noise = torch.randn(12, 2, 2, generator=torch.Generator().manual_seed(7)).view(2, *shape)
    mu, sigma = mean.expand(2, 2), std.expand(2, 2)
    for each in noise:
        plans = mu + sigma * each
        plans[0] = mu
        cost = (plans.sum(dim=1) - goal).square().sum(dim=1)
        elites = plans[cost.argsort()[:3]]
        mu = elites.mean(dim=0)
        sigma = ((elites - mu).square().sum(dim=0) / 2).sqrt()
    torch.testing.assert_close(found.plan_EHK[0], mu)
    assert CEMConfig(samples=300, iterations=30, elites=30, horizon=5, chunk=None) == REFERENCE_CEM


@EVERY
@settings(max_examples=5, deadline=None)
@given(chunk=st.sampled_from([None, 7, 50, 300]), seed=st.integers(0, 1000), warm=st.booleans())
def test_planning_together_or_in_chunks_gives_each_environment_its_own_plan(config, chunk, seed, warm):
    torch.manual_seed(seed)
    z, goal, seeds = torch.randn(5, 2), torch.randn(5, 2), list(range(seed, seed + 5))
    config = replace(config, samples=50, elites=8, iterations=3)
    start = plan(z, goal_objective(goal), config, seeds).after() if warm else None
    together = plan(z, goal_objective(goal), replace(config, chunk=chunk), seeds, warm_start=start)
    for index, own in enumerate(seeds):
        one = slice(index, index + 1)
        before = plan(z[one], goal_objective(goal[one]), config, [own]).after() if warm else None
        alone = plan(z[one], goal_objective(goal[one]), config, [own], warm_start=before)
        torch.testing.assert_close(together.plan_EHK[index], alone.plan_EHK[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(together.cost_E[index], alone.cost_E[0], rtol=0, atol=1e-5)


def lewm(history: int = 3) -> LeWM:
    """A small transformer model whose modulations do something, in float64."""
    config = LeWMConfig(
        image_size=16, latent_dim=12, history=history, frame_skip=2, stack=1,
        encoder=EncoderConfig(width=4, hidden=16),
        predictor=PredictorConfig(kind="transformer", hidden=16, depth=2, heads=2, head_dim=4, head_hidden=16),
    )  # fmt: skip
    torch.manual_seed(0)
    model = LeWM(config, 1).double().eval()
    for name, parameter in model.named_parameters():
        if "modulation" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def imagine(model: LeWM, z: Tensor, config: PlannerConfig, seeds: list[int], past=None, dynamics=None) -> Solution:
    goal = torch.linspace(-1, 1, 12, dtype=torch.float64).expand(len(z), 12)
    std = torch.ones(2, dtype=torch.float64)
    return plan(
        z, goal_objective(goal), config, seeds, dynamics or model, mean_K=0 * std, std_K=std, past=past, decisions=2
    )


@EVERY
def test_a_world_model_with_history_plans_the_same_alone_and_in_chunks(config):
    model, config = lewm(), replace(config, samples=30, elites=5, iterations=3, horizon=4)
    z, past = torch.randn(3, 2, 12, dtype=torch.float64), torch.randn(3, 1, 2, dtype=torch.float64)
    together = imagine(model, z, replace(config, chunk=11), [0, 1, 2], past).plan_EHK
    for e in range(3):
        alone = imagine(model, z[e : e + 1], config, [e], past[e : e + 1]).plan_EHK
        torch.testing.assert_close(together[e], alone[0], rtol=0, atol=1e-6)
    with_past, other = (imagine(model, z, config, [0, 1, 2], each).cost_E for each in (past, past + 1))
    assert (with_past - other).abs().min() > 1e-6, "the past blocks change nothing"
    with pytest.raises(ValueError, match="1 past blocks of 2 numbers"):
        imagine(model, z, config, [0, 1, 2])


@EVERY
def test_equal_seeds_give_equal_plans_and_the_generator_goes_on(config):
    generators = [torch.Generator().manual_seed(3)]
    first, second, third = (
        solve(
            goal_objective(torch.ones(1, 2)), INTEGRATOR, torch.zeros(1, 2), config=config, mean_K=torch.zeros(2),
            std_K=torch.ones(2), bounds=None, generators=each,
        ).plan_EHK
        for each in (generators, generators, [torch.Generator().manual_seed(3)])
    )  # fmt: skip
    assert torch.equal(first, third)
    assert not torch.equal(first, second)


@EVERY
def test_a_warm_start_helps(config):
    """With little search, a plan that goes on from the last one is nearer the optimum than a new one."""
    goal = torch.tensor([[2.0, -2.5]])
    before = plan(torch.zeros(1, 2), goal_objective(goal), config, [0])
    z = before.plan_EHK[:, 0]
    little = replace(config, samples=20, elites=4, iterations=1, horizon=2)
    cold, warm = (
        torch.stack([plan(z, goal_objective(goal), little, [seed], warm_start=start).cost_E for seed in range(20)])
        for start in (None, before.after())
    )
    assert (warm <= 0.02).all()
    assert warm.mean() < 0.2 * cold.mean()


def test_a_warm_start_is_shifted_and_filled_with_the_mean():
    from models.planners.solve import starting_mean

    found = plan(torch.zeros(1, 2), goal_objective(torch.ones(1, 2)), CONFIGS["cem"], [0])
    mean = starting_mean(CONFIGS["cem"], torch.tensor([5.0, 6.0]), 1, found.after(2))
    torch.testing.assert_close(mean[:, 0], found.mean_EHK[:, 2])
    torch.testing.assert_close(mean[0, 1:], torch.tensor([[5.0, 6.0], [5.0, 6.0]]))
    with pytest.raises(ValueError, match="no warm start after 4"):
        found.after(4)


def test_icem_looks_first_at_the_elites_of_the_last_solve_and_never_gets_worse():
    config = replace(CONFIGS["icem"], iterations=4)
    assert isinstance(config, ICEMConfig)
    before = plan(torch.zeros(1, 2), goal_objective(torch.ones(1, 2)), config, [0])
    assert before.elites_EMHK.shape == (1, 6, 3, 2)
    torch.testing.assert_close(before.elites_EMHK[:, 0], before.plan_EHK)
    looked: list[Tensor] = []

    def cost(z_ESHD: Tensor, plan_ESHK: Tensor) -> Tensor:
        looked.append(plan_ESHK)
        return plan_ESHK.sum(dim=(2, 3)).square()

    found = plan(torch.zeros(1, 2), cost, config, [1], warm_start=before.after())
    torch.testing.assert_close(looked[0][:, :6, :2], before.elites_EMHK[:, :, 1:])
    assert [plans.shape[1] for plans in looked] == [200, 160, 128, 102] == list(config.populations)
    every = torch.cat([plans.sum(dim=(2, 3)).square() for plans in looked], dim=1)
    torch.testing.assert_close(found.cost_E, every.min(dim=1).values)
    assert replace(config, iterations=20).populations[-1] == 40


@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
def test_coloured_noise_has_unit_variance_and_the_spectrum(beta):
    from models.planners.icem import color, coloring

    like = torch.zeros((), dtype=torch.float64)
    mixing = coloring(12, beta, like)
    torch.testing.assert_close(mixing @ mixing.T @ torch.ones(12).double(), (mixing @ mixing.T).sum(dim=0))
    torch.testing.assert_close((mixing @ mixing.T).diagonal(), torch.ones(12).double())
    power = torch.fft.fft(mixing[0]).abs().square()
    frequency = torch.tensor([1.0, 1, 2, 3, 4, 5, 6]).double()
    torch.testing.assert_close(power[:7] / power[1], frequency**-beta)
    white = torch.randn(1, 2, 3, 8, dtype=torch.float64)  # 3 blocks of 4 actions of 2 numbers
    mixed = color(white, mixing, 4).view(1, 2, 12, 2)
    expected = torch.einsum("ij,esja->esia", mixing, white.view(1, 2, 12, 2))
    torch.testing.assert_close(mixed, expected)


def test_mppi_weights_are_a_softmax_that_ignores_the_scale_of_costs():
    from models.planners.mppi import weights

    cost = torch.tensor([[1.0, 2.0, 4.0]])
    expected = torch.exp(-cost / (0.5 * cost.std()))
    torch.testing.assert_close(weights(cost, 0.5), expected / expected.sum())
    torch.testing.assert_close(weights(1000 * cost, 0.5), weights(cost, 0.5))
    torch.testing.assert_close(weights(torch.ones(1, 4), 0.5), torch.full((1, 4), 0.25))


@EVERY
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_candidates_without_a_finite_cost_are_never_chosen(config, bad):
    def cost(z_ESHD: Tensor, plan_ESHK: Tensor) -> Tensor:
        allowed = plan_ESHK[:, :, 0, 0] > 0.3
        return torch.where(allowed, plan_ESHK[:, :, 0].square().sum(-1), bad)

    solution = plan(torch.zeros(2, 2), cost, config, [0, 1]).checked()
    assert ((solution.plan_EHK[:, 0, 0] > 0.29) & (solution.plan_EHK[:, 0, 0] < 0.6)).all()


@EVERY
def test_an_environment_without_any_finite_cost_is_an_error_and_leaves_the_others_alone(config):
    z = torch.zeros(3, 2)
    z[1] = torch.nan
    solution = plan(z, goal_objective(torch.ones(3, 2)), config, [0, 1, 2])
    with pytest.raises(ValueError, match=r"finite cost in environments \[1\]"):
        solution.checked()
    alone = plan(z[2:], goal_objective(torch.ones(1, 2)), config, [2]).checked()
    torch.testing.assert_close(solution.plan_EHK[2], alone.plan_EHK[0], rtol=0, atol=1e-6)


class NoWaiting(TorchDispatchMode):
    """Fails on operations that wait for a device, or whose result has a shape that depends on values."""

    FORBIDDEN = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "lift_fresh",
                 "unique", "_unique2", "repeat_interleave")  # fmt: skip

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        tensor_repeats = name == "repeat_interleave" and isinstance(args[0], Tensor) and len(args) == 1
        assert name not in self.FORBIDDEN[:-1], f"{name} waits for the device"
        assert not tensor_repeats, "repeats in a tensor wait for the device"
        boolean = name in ("index", "index_put_") and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        assert not boolean, "a boolean mask waits for the device"
        return func(*args, **(kwargs or {}))


@EVERY
def test_a_solve_never_waits_for_the_device(config):
    config = replace(config, samples=20, elites=4, iterations=2, chunk=8)
    model = lewm()
    with NoWaiting():
        first = imagine(model, torch.randn(2, 1, 12, dtype=torch.float64), config, [0, 1])
        z, goal = torch.zeros(2, 2), torch.ones(2, 2)
        before = plan(z, goal_objective(goal), config, [0, 1])
        plan(z, goal_objective(goal), config, [0, 1], warm_start=before.after())
    with NoWaiting(), pytest.raises(AssertionError, match="waits for the device"):
        first.checked()


@EVERY
def test_a_planner_of_many_solves_gives_what_solve_gives(config):
    config = replace(config, samples=30, elites=5, iterations=3)
    mean, std = torch.zeros(2), torch.ones(2)
    planner = Planner(
        lambda goal, weight: weighted_sum((1.0, goal_objective(goal)), (1.0, lambda z, p: weight * p.sum(dim=(2, 3)))),
        INTEGRATOR, config=config, mean_K=mean, std_K=std, bounds=(-1.0, 1.0),
    )  # fmt: skip
    ours, theirs = ([torch.Generator().manual_seed(seed) for seed in (0, 1)] for _ in range(2))
    start = previous = None
    for turn in range(4):
        z, goal, weight = torch.randn(2, 2), torch.randn(2, 2), torch.rand(2, 1)
        found = planner(z, goal, weight, generators=ours, warm_start=start)
        objective = weighted_sum((1.0, goal_objective(goal)), (1.0, lambda z, plan, w=weight: w * plan.sum(dim=(2, 3))))
        expected = solve(
            objective, INTEGRATOR, z, config=config, mean_K=mean, std_K=std, bounds=(-1.0, 1.0), generators=theirs,
            warm_start=start,
        )  # fmt: skip
        assert torch.equal(found.plan_EHK, expected.plan_EHK)
        assert torch.equal(found.cost_E, expected.cost_E)
        if previous is not None:
            assert torch.equal(*previous), "a later call wrote into an earlier solution"
        previous = (found.plan_EHK, found.plan_EHK.clone())
        start = found.after() if turn else None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_a_compiled_dynamics_plans_the_same():
    model, config = lewm(), CEMConfig(samples=20, iterations=2, elites=4, horizon=3)
    z = torch.randn(2, 1, 12, dtype=torch.float64)
    plain, fast = (imagine(model, z, config, [0, 1], dynamics=each).plan_EHK for each in (model, compiled(model)))
    torch.testing.assert_close(plain, fast, rtol=0, atol=1e-6)


@pytest.mark.gpu
@EVERY
@pytest.mark.parametrize("history", [1, 2])
def test_a_captured_solve_is_the_eager_one(config, history):
    device = torch.device("cuda")
    model = lewm().to(device)
    mean, std = (torch.full((2,), value, dtype=torch.float64, device=device) for value in (0.0, 1.0))
    common = {"config": replace(config, samples=64, elites=8), "mean_K": mean, "std_K": std, "bounds": (-1.0, 1.0)}
    planner = Planner(goal_objective, model, decisions=2, **common)
    ours, theirs = ([torch.Generator(device).manual_seed(seed) for seed in (0, 1)] for _ in range(2))
    start = None
    for _ in range(4):
        z, goal = (torch.randn(2, *n, 12, dtype=torch.float64, device=device) for n in ((history,), ()))
        past = torch.randn(2, history - 1, 2, dtype=torch.float64, device=device) if history > 1 else None
        torch.cuda.set_sync_debug_mode("error")
        try:
            expected = solve(
                goal_objective(goal), model, z, generators=theirs, warm_start=start, past=past, decisions=2, **common
            )
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found = planner(z, goal, generators=ours, warm_start=start, past=past)
        torch.testing.assert_close(found.plan_EHK, expected.plan_EHK, rtol=0, atol=1e-6)
        start = expected.after()


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (CEMConfig, {"samples": 10, "elites": 11}),
        (ICEMConfig, {"elites": 1}),
        (MPPIConfig, {"iterations": 0}),
        (CEMConfig, {"horizon": 0}),
        (CEMConfig, {"chunk": 0}),
        (ICEMConfig, {"momentum": 1.0}),
        (ICEMConfig, {"decay": 0.9}),
        (MPPIConfig, {"temperature": 0.0}),
    ],
)
def test_impossible_settings_are_refused(make, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        make(**({"samples": 10, "elites": 2} | settings))


def test_what_does_not_fit_together_is_refused():
    goal = goal_objective(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="as many generators"):
        plan(torch.zeros(2, 2), goal, CONFIGS["cem"], [0])
    with pytest.raises(ValueError, match="is not 3 actions"):
        plan(torch.zeros(2, 2), goal, CONFIGS["icem"], [0, 1], decisions=3)
    with pytest.raises(ValueError, match="at least one term"):
        weighted_sum()


def test_mppi_weights_are_finite_for_equal_infinite_and_very_cold_costs():
    from models.planners.mppi import weights

    even = torch.full((1, 4), 0.25)
    torch.testing.assert_close(weights(torch.ones(1, 4), 1e-12), even)
    torch.testing.assert_close(weights(torch.full((1, 4), torch.inf), 0.5), even)
    torch.testing.assert_close(weights(torch.tensor([[1.0, 2.0, 3.0]]), 1e-12), torch.tensor([[1.0, 0.0, 0.0]]))


@EVERY
def test_a_failed_solve_does_not_spoil_the_next(config):
    failed = plan(torch.full((1, 2), torch.nan), goal_objective(torch.ones(1, 2)), config, [0])
    assert torch.isfinite(failed.plan_EHK).all()
    plan(torch.zeros(1, 2), goal_objective(torch.ones(1, 2)), config, [0], warm_start=failed.after()).checked()


def test_elites_of_an_earlier_solve_keep_to_narrower_bounds():
    config = ICEMConfig(samples=4, iterations=1, elites=4, horizon=2, kept=1.0)
    goal = goal_objective(torch.full((1, 2), 5.0))
    start = plan(torch.zeros(1, 2), goal, config, [0], bounds=None).after()
    narrow = plan(torch.zeros(1, 2), goal, config, [0], bounds=(-0.1, 0.1), warm_start=start)
    assert narrow.plan_EHK.abs().max() <= 0.1
    assert narrow.elites_EMHK.abs().max() <= 0.1


def test_bounds_deviations_and_warm_starts_that_do_not_fit_are_refused():
    goal = goal_objective(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="lowest action must not be above"):
        plan(torch.zeros(2, 2), goal, CONFIGS["cem"], [0, 1], bounds=(1.0, -1.0))
    with pytest.raises(ValueError, match="same shape"):
        plan(torch.zeros(2, 2), goal, CONFIGS["cem"], [0, 1], std_K=torch.ones(1))
    one = plan(torch.zeros(1, 2), goal_objective(torch.zeros(1, 2)), CONFIGS["cem"], [0])
    with pytest.raises(ValueError, match="warm start of 1 environments is not one of 2"):
        plan(torch.zeros(2, 2), goal, CONFIGS["cem"], [0, 1], warm_start=one.after())
    with pytest.raises(ValueError, match="temperature"):
        MPPIConfig(temperature=float("nan"))
