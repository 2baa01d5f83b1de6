"""A recipe on the real cartpole, as small as it goes: every stage is done once, and an interrupted line goes on."""

import json
from dataclasses import replace

import pytest

from infra.recipes import SCALES, TASKS, recipe

pytestmark = pytest.mark.usefixtures("ray_local")

STAGES = ("collect", "train", "probe", "surprise", "plan", "control", "register", "report")


def smallest():
    """The small recipe of cartpole with sizes of a test."""
    from models.control import HeadsConfig
    from models.encoders import EncoderConfig
    from models.planners import CEMConfig, MPPIConfig
    from models.predictors import PredictorConfig
    from trainers.evaluation.control import ControlPlanner, DaggerConfig
    from trainers.heads import HeadsTraining

    base = recipe("dmc/cartpole-swingup", "small", 3)
    encoder, predictor = EncoderConfig(width=4, hidden=16), PredictorConfig(hidden=16)
    model = replace(base.train.model, latent_dim=16, encoder=encoder, predictor=predictor)
    return replace(
        base,
        collect=replace(base.collect, episodes=16, steps=40),
        train=replace(
            base.train, model=model, stop_step=4, batch_size=8, checkpoint_every=2, validate_every=4, threads=1
        ),
        surprise=replace(base.surprise, episodes=2, before=2, after=4),
        plan=replace(base.plan, goals=2, solver=CEMConfig(samples=4, iterations=1, elites=2, horizon=2)),
        control=replace(
            base.control,
            episodes=2,
            decisions=12,
            training=HeadsTraining(steps=4, refresh=2, batch_size=8, heads=HeadsConfig(hidden=8)),
            dagger=DaggerConfig(rounds=1, episodes=2),
            planner=ControlPlanner(solver=MPPIConfig(samples=4, iterations=1, elites=2, horizon=2)),
        ),
    )


def test_every_task_has_a_recipe_at_every_scale():
    for environment in TASKS:
        for scale in SCALES:
            found = recipe(environment, scale, 7)
            assert found.environment == environment
            seeds = {found.collect.seed, found.train.seed, found.surprise.seed, found.plan.seed, found.control.seed}
            assert seeds == {7}
            assert found.train.data == ""
    with pytest.raises(ValueError, match=r"no recipe for 'dmc/walker-wlk', did you mean dmc/walker-walk\? Choose from"):
        recipe("dmc/walker-wlk", "small", 0)


@pytest.fixture(scope="module")
def line(tmp_path_factory, ray_local):
    from infra.home import Home
    from infra.line import run_recipe

    home = Home(tmp_path_factory.mktemp("line") / "home")
    report = run_recipe(smallest(), home, name="mine", device="cpu", workers=1)
    return home, report


def again(home, chosen):
    from infra.line import run_recipe

    report = run_recipe(chosen, home, name="mine", device="cpu", workers=1)
    return report, {stage.name for stage in report.stages if not stage.done_before}


def test_all_stages_are_done_and_told(line):
    home, report = line
    assert tuple(stage.name for stage in report.stages) == STAGES
    assert not any(stage.done_before for stage in report.stages)
    assert report.seconds == pytest.approx(sum(stage.seconds for stage in report.stages))
    assert (report.episodes, report.frames, report.training_steps) == (16, 16 * 41, 4)
    assert {score.name for score in report.control.scores} == {"plan", "prior", "expert", "collection", "random"}
    assert (report.model, report.model_version, report.champion) == ("lewm-cartpole-swingup", "1", True)
    assert (home.runs / "mine" / "report.html").read_text().startswith("<!doctype html>")


def test_nothing_is_done_twice(line):
    from infra.registry import versions

    home, first = line
    report, redone = again(home, smallest())
    assert redone == set()
    assert [stage.seconds for stage in report.stages] == [stage.seconds for stage in first.stages]
    assert replace(report, stages=(), seconds=0.0) == replace(first, stages=(), seconds=0.0)
    assert len(versions("lewm-cartpole-swingup", home.tracking_uri)) == 1


def test_what_is_missing_is_done_and_nothing_else(line):
    home, _ = line
    (home.runs / "mine" / "scorecards" / "plan.json").unlink()
    assert again(home, smallest())[1] == {"plan", "report"}
    notes = home.runs / "mine" / "stages.json"
    kept = json.loads(notes.read_text())
    del kept["register"], kept["report"]
    notes.write_text(json.dumps(kept))
    report, redone = again(home, smallest())
    assert redone == {"register", "report"}
    assert report.model_version == "1"


def test_other_settings_do_their_stage_anew(line):
    home, _ = line
    chosen = smallest()
    other = replace(chosen, plan=replace(chosen.plan, goals=3))
    report, redone = again(home, other)
    assert redone == {"plan", "report"}
    assert report.planning.goals == 3


def test_another_training_under_the_same_name_is_refused(line):
    home, _ = line
    chosen = smallest()
    other = replace(chosen, train=replace(chosen.train, batch_size=4))
    with pytest.raises(ValueError, match="run mine has another configuration: batch_size was 8, is 4"):
        again(home, other)


def test_tables_get_the_rows_of_a_run_once(line, tmp_path):
    import csv

    from infra.cli.run import _write, print_line

    _, report = line
    for _ in range(2):
        _write(report, tmp_path)
    print_line(report)
    tables = {path.stem: list(csv.DictReader(path.read_text().splitlines())) for path in tmp_path.iterdir()}
    assert set(tables) == {"run", "validation", "probes", "surprise", "goals", "control"}
    assert [row["stage"] for row in tables["run"]] == [*STAGES, "all"]
    assert {row["contender"] for row in tables["control"]} == {"plan", "prior", "expert", "collection", "random"}
    quantities = {row["quantity"] for row in tables["probes"]}
    assert {"cart_position", "sin(pole_angle)", "pole_angular_velocity"} <= quantities
    assert len(tables["probes"]) == 4 * len(quantities)
    for rows in tables.values():
        assert {(row["run"], row["environment"]) for row in rows} == {("mine", "dmc/cartpole-swingup")}
        assert {row["seed"] for row in rows} == {"3"}
        assert all(row["commit"] and row["hardware"] for row in rows)
