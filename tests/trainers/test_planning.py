"""Goals of a varied dataset that was really recorded, with every planner, and with the history that a model may see."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from collectors.config import CollectConfig
from collectors.envs.base import EnvConfig, VariationConfig
from collectors.policies import RandomConfig
from models.encoders import EncoderConfig
from models.lewm import LeWM, LeWMConfig
from models.planners import CEMConfig, ICEMConfig, MPPIConfig
from models.predictors import PredictorConfig
from trainers.evaluation.planning import PlanningConfig, plan_to_goals

MODEL = LeWMConfig(
    image_size=16, latent_dim=8, history=3, frame_skip=2, stack=2, encoder=EncoderConfig(width=4, hidden=8),
    predictor=PredictorConfig(kind="transformer", hidden=8, depth=1, heads=1, head_dim=4, head_hidden=8),
)  # fmt: skip
SOLVERS = {
    kind: make(samples=8, iterations=2, elites=3, horizon=4)
    for kind, make in (("cem", CEMConfig), ("icem", ICEMConfig), ("mppi", MPPIConfig))
}


@pytest.fixture(scope="module")
def dataset(gl, tmp_path_factory):
    from collectors.envs import make_env
    from collectors.rollout import record_episode
    from shards.dataset import Dataset
    from shards.manifest import assemble
    from shards.writer import ShardWriter

    path = tmp_path_factory.mktemp("varied")
    varied = EnvConfig(name="dmc/cartpole-swingup", size=16, variation=VariationConfig(colors=0.5, masses=1.0))
    config = CollectConfig(env=varied, policy=RandomConfig(), episodes=16, steps=12, seed=1)
    env = make_env(varied)
    with ShardWriter(path, "part-00000", "jpeg") as writer:
        for number in range(config.episodes):
            writer.write(record_episode(env, config, number))
    env.close()
    assemble(path)
    return Dataset.open(path)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LeWM(MODEL, 1).eval()


@pytest.mark.parametrize("kind", SOLVERS)
def test_a_run_plans_in_the_environment_that_recorded(dataset, model, kind, monkeypatch, tmp_path):
    """Recorded with other masses: only the same variation leads to the recorded states, which the evaluation checks.

    Every block looks at one latent more, up to the model's history, and plans one block less.
    """
    from infra import workflows

    seen, rollout = [], model.rollout

    def spy(z_BTD, plan_BHK, past_BPK=None):
        seen.append((z_BTD.shape[1], plan_BHK.shape[1], 0 if past_BPK is None else past_BPK.shape[1]))
        return rollout(z_BTD, plan_BHK, past_BPK)

    monkeypatch.setattr(model, "rollout", spy)
    checkpoint = tmp_path / "step_000000001"
    monkeypatch.setattr(workflows, "_open", lambda *_: (checkpoint, SimpleNamespace(stop_step=1), dataset, model))
    settings = PlanningConfig(goals=2, minimum_distance=0.0, random_repeats=1, solver=SOLVERS[kind])
    tracker = MagicMock()
    run = SimpleNamespace(path=tmp_path)
    score = workflows.plan(run, tracker, torch.device("cpu"), settings)  # pyright: ignore[reportArgumentType]
    assert (score.planner, score.goals, score.decisions) == (kind, 2, 8)
    assert list(dict.fromkeys(seen)) == [(1, 4, 0), (2, 3, 1), (3, 2, 2), (3, 1, 2)]
    assert (tmp_path / "scorecards" / "plan.json").exists()


def test_another_environment_is_refused(dataset, model):
    from collectors.envs import make_env

    env = make_env(EnvConfig(name="dmc/cartpole-swingup", size=16))
    try:
        with pytest.raises(ValueError, match="other factors of variation"):
            plan_to_goals(model, dataset, env, PlanningConfig(goals=1, minimum_distance=0.0, solver=SOLVERS["cem"]))
    finally:
        env.close()
