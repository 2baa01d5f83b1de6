"""What `lewm bench plan` times does the same work in both modes, and its ratios are quotients of what it prints."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from infra.bench import plan
from infra.bench.solves import Episode, Published, Search, Tuned, cost, narrow
from models.dino_wm import DinoWM, DinoWMConfig
from models.encoders import EncoderConfig
from models.flops import forward_flops
from models.lewm import LeWM, LeWMConfig
from models.predictors import PredictorConfig
from models.presets import preset

LEWM = LeWMConfig(
    image_size=28,
    latent_dim=12,
    history=3,
    frame_skip=5,
    stack=1,
    encoder=EncoderConfig(kind="vit", width=12, hidden=16, depth=2, head_hidden=16),
    predictor=PredictorConfig(kind="transformer", hidden=16, depth=2, heads=2, head_dim=8, head_hidden=16),
)
TWIN = DinoWMConfig(
    image_size=28, width=12, encoder_depth=2, encoder_heads=2, action_width=4, depth=2, heads=2, head_dim=8, hidden=16
)
SEARCH = Search(candidates=6, iterations=3, horizon=5, block=10)
CPU = torch.device("cpu")


class Calls(TorchDispatchMode):
    """Counts operations."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def lewm() -> LeWM:
    torch.manual_seed(0)
    model = LeWM(LEWM, 2).eval()
    for parameter in model.parameters():  # modulations begin at zero, and would let every plan cost the same
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def twin() -> DinoWM:
    torch.manual_seed(0)
    return DinoWM(TWIN, 10).eval()


@pytest.mark.parametrize(("make", "frame"), [(lewm, (1, 28, 28, 3)), (twin, (28, 28, 3))])
def test_both_modes_find_the_same_plan_and_groups_change_nothing(make, frame):
    plans = {}
    for name, side, group, chunk in (
        ("published", Published(make()), 1, None),
        ("tuned", Tuned(make(), torch.float32), 4, None),
        ("tuned, in chunks and groups", Tuned(make(), torch.float32), 3, 4),
    ):
        torch.manual_seed(1)
        episode = Episode(side, replace(SEARCH, chunk=chunk), frame, environments=4, group=group, solves=2)
        assert [len(each.now) for each in episode.groups] == {1: [1] * 4, 4: [4], 3: [3, 1]}[group]
        frames = torch.randint(0, 256, (2, 4, *frame), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
        begin = 0
        for each in episode.groups:
            end = begin + len(each.now)
            each.now.copy_(frames[0, begin:end])
            each.goal.copy_(frames[1, begin:end])
            for number, generator in enumerate(each.generators, begin):
                generator.manual_seed(number)
            begin = end
        plans[name] = torch.cat([each.first() for each in episode.groups])
        assert episode() > 0
    assert plans["published"].shape == (4, 5, 10)
    assert not torch.equal(plans["published"][0], plans["published"][1])
    for other in ("tuned", "tuned, in chunks and groups"):
        torch.testing.assert_close(plans[other], plans["published"], rtol=0, atol=1e-4)


def test_the_kept_goal_is_the_goal_of_before():
    each = Episode(Tuned(twin(), torch.float32), SEARCH, (28, 28, 3), environments=1, group=1, solves=2).groups[0]
    each.generators[0].manual_seed(5)
    first = each.first()
    each.goal.zero_()
    each.generators[0].manual_seed(5)
    torch.testing.assert_close(each.again(), first)
    each.generators[0].manual_seed(5)
    assert not torch.equal(each.first(), first)


@pytest.mark.parametrize(("make", "frame"), [(lewm, (1, 28, 28, 3)), (twin, (28, 28, 3))])
@pytest.mark.parametrize("side", [Published, lambda model: Tuned(model, torch.float32)])
def test_counted_flops_are_those_of_a_solve(make, frame, side):
    made = side(make())
    counted = cost(make, side, frame, SEARCH)
    each = Episode(made, SEARCH, frame, environments=1, group=1, solves=1).groups[0]
    assert forward_flops(each.first) == counted.solve(SEARCH, encodings=2)


def test_the_floor_has_the_operations_of_the_model_and_next_to_no_arithmetic():
    def operations(config: LeWMConfig) -> tuple[int, float]:
        with torch.device("meta"):
            model = LeWM(config, 2).eval()
            shape = (1, config.stack, config.image_size, config.image_size, 3)
            frames, plan_BHK = torch.empty(shape, dtype=torch.uint8), torch.empty(2, 5, 10)

            def run() -> torch.Tensor:
                return model.rollout(model.encode(frames).expand(2, -1), plan_BHK)

            with Calls() as calls, torch.no_grad():
                run()
            return calls.count, forward_flops(run)

    full = preset("released")
    full = replace(full, encoder=replace(full.encoder, depth=2), predictor=replace(full.predictor, depth=2))
    calls, flops = operations(full)
    floor_calls, floor_flops = operations(narrow(full))
    assert calls == floor_calls > 300
    assert floor_flops < flops / 1000


def test_rows_are_complete_and_ratios_are_quotients():
    args = plan.Args(device="cpu", candidates=4, iterations=3, environments=2, repeats=2)
    rows = plan.compare(args, CPU, LEWM, TWIN)
    side = {(row.contender, row.mode): row for row in rows}
    assert side.keys() == {
        *((name, mode) for name in (plan.LEWM, plan.TWIN) for mode in (plan.PUBLISHED, plan.TUNED)),
        (plan.FLOOR, plan.TUNED),
    }
    for (name, mode), row in side.items():
        assert 0 < row.low <= row.solve_seconds <= row.high
        assert row.turns == 2
        assert row.iterations == (2 if name == plan.TWIN else 3)  # several environments
        assert row.iteration_seconds == pytest.approx(row.solve_seconds / row.iterations)
        assert row.episode_seconds == pytest.approx(2 * row.solve_seconds)  # 50 steps, 25 a plan
        assert row.ceiling_share is not None
        assert row.solve_gflop is not None
        assert row.dtype == "float32" or mode == plan.TUNED
        other = side[plan.TWIN, mode]
        assert other.solve_gflop is not None
        if name == plan.TWIN:
            assert row.ratio is row.flop_ratio is None
            continue
        assert row.ratio == pytest.approx(other.iteration_seconds / row.iteration_seconds)
        if name == plan.LEWM:
            flops = (other.solve_gflop / other.iterations) / (row.solve_gflop / row.iterations)
            assert row.flop_ratio == pytest.approx(flops)


def row(contender: str, seconds: float, ratio: float | None) -> plan.Row:
    return plan.Row(
        table=plan.COMPARED, contender=contender, mode=plan.TUNED, dtype="float32", candidates=4, iterations=2,
        horizon=5, environments=1, turns=3, solve_seconds=seconds, low=0.9 * seconds, high=1.5 * seconds,
        iteration_seconds=seconds / 2, episode_seconds=2 * seconds, ratio=ratio, flop_ratio=200.0,
    )  # fmt: skip


def test_verdicts_say_what_was_reached_and_what_forbids_it():
    twin = row(plan.TWIN, 60.0, None)
    reached = plan.verdicts([row(plan.LEWM, 1.0, 60.0), twin, row(plan.FLOOR, 0.1, 600.0)])
    assert len(reached) == 1
    assert "60x, at least 36x over 3 turns" in reached[0]
    assert "48x is reached" in reached[0]
    missed = plan.verdicts([row(plan.LEWM, 3.0, 20.0), twin, row(plan.FLOOR, 2.0, 30.0)])
    assert "48x is not reached" in missed[0]
    assert "forbids 48x" in missed[1]
    under, over = (
        replace(row(plan.LEWM, 1.0, None), table=plan.ARTICLE, episode_seconds=seconds) for seconds in (0.5, 1.0)
    )
    said = plan.verdicts([row(plan.LEWM, 1.0, 60.0), twin, row(plan.FLOOR, 0.1, 600.0), under, over])
    assert "0.50 s, under a second" in said[1]
    assert "1.00 s, not under a second" in said[2]


def test_the_article_rows_have_the_simulator_beside_them():
    config = replace(preset("tiny"), frame_skip=1)
    rows = plan.article(plan.Args(device="cpu", repeats=1), CPU, config)
    assert [(each.candidates, each.iterations, each.horizon) for each in rows] == [(100, 1, 5), (100, 10, 5)]
    for each in rows:
        assert each.episode_seconds == pytest.approx(10 * each.solve_seconds)
        assert each.simulator_seconds is not None
        assert each.rendering_seconds is not None
        assert min(each.simulator_seconds, each.rendering_seconds) > 0


@pytest.mark.parametrize("option", ["--candidates 1", "--iterations 0", "--repeats 0", "--horizon 0"])
def test_impossible_settings_are_refused_in_one_line(option, capsys):
    from infra.cli import main

    name, value = option.split()
    assert main(["bench", "plan", name, value]) == 2
    assert f"{name} must be at least" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_prints_and_writes_every_row(tmp_path):
    command = [sys.executable, "-c", "from infra.cli import entry; entry()", "bench", "plan", "--device", "cpu"]
    command += ["--candidates", "2", "--iterations", "1", "--horizon", "1", "--repeats", "1"]
    done = subprocess.run(
        [*command, "--json", "--csv", str(tmp_path / "out.csv")], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert [each["table"] for each in printed["rows"]] == 5 * [plan.COMPARED] + 2 * [plan.ARTICLE]
    assert len(printed["verdicts"]) >= 3
    assert len((tmp_path / "out.csv").read_text().splitlines()) == len(printed["rows"]) + 1
