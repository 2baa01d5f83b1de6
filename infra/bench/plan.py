"""`lewm bench plan`: seconds that LeWM plans, beside a twin of DINO-WM that costs what DINO-WM costs.

Both plan with one solver and the same candidates, in turns, each twice. "As published" is eager float32 the way of the
published code: every imagined step predicts its whole window anew, one environment at a time. "Tuned" is the best known
here for that model: bfloat16 where the device multiplies it faster, nothing computed twice, candidates in groups that
fit the caches; on a GPU compiled, and a whole solve in one CUDA graph. The ratio to read is tuned against tuned; the
ratio of FLOPs is its bound. An episode is 50 environment steps: two plans of five blocks of five, each from a new frame
to the same goal, encoding included. A share is of what a large matrix product reaches on the device in the same type.

The floor is the tuned solve of a LeWM so narrow that it has the same kernels and nothing to compute. Where the twin's
time is less than 48 floors, no LeWM of this depth could be 48 times as fast, and this is said.

The second table is the `article` preset in dmc/cartpole-swingup: 50 decisions, one plan for every five, frames encoded,
simulator and rendering beside it. Weights are random, for time depends on shapes. Takes about 15 minutes on 2 cores.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from infra.bench.common import Figure, take_turns, write_csv
from infra.cli.common import Common, Device, pick_device
from infra.console import print_json, print_table, progress, say

if TYPE_CHECKING:
    import torch

    from models.dino_wm import DinoWMConfig
    from models.lewm import LeWMConfig

CLAIM = 48.0
LEWM, TWIN, FLOOR = "LeWM", "DINO-WM twin", "floor"
PUBLISHED, TUNED = "as published", "tuned"
ACTIONS, SKIP, STEPS = 2, 5, 50
ENVIRONMENT = "dmc/cartpole-swingup"
COMPARED, ARTICLE = "side by side", "article"


@dataclass(frozen=True, kw_only=True, slots=True)
class Args(Common):
    """Time planning with LeWM beside a twin of DINO-WM, and an episode of the article's model."""

    device: Device = "auto"
    """Device that plans: auto, cpu or cuda."""
    candidates: int | None = None
    """Candidate plans an iteration; 16 on a CPU and 300 on a GPU unless given."""
    iterations: int | None = None
    """Iterations of the solver; 2 on a CPU and 30 on a GPU unless given. The twin does 2 for several environments."""
    environments: int = 1
    """Environments planned for. Tuned, LeWM plans for all at once; the others one after another."""
    repeats: int | None = None
    """Turns of every contender; 3 on a CPU and 10 on a GPU unless given."""
    horizon: int = 5
    """Action blocks in a plan."""
    csv: Path | None = None
    """Write the rows there."""

    def __post_init__(self) -> None:
        for name in ("candidates", "iterations", "environments", "repeats", "horizon"):
            value, least = getattr(self, name), 2 if name == "candidates" else 1
            if value is not None and value < least:
                raise ValueError(f"--{name} must be at least {least}, not {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One contender. Seconds are medians over turns with their extremes; `ratio` is the twin's seconds an iteration
    over this LeWM's, and `flop_ratio` the same of counted FLOPs."""

    table: str
    contender: str
    mode: str
    dtype: str
    candidates: int
    iterations: int
    horizon: int
    environments: int
    turns: int
    solve_seconds: float
    low: float
    high: float
    iteration_seconds: float
    episode_seconds: float
    solve_gflop: float | None = None
    ceiling_share: float | None = None
    ratio: float | None = None
    flop_ratio: float | None = None
    simulator_seconds: float | None = None
    rendering_seconds: float | None = None
    threads: int | None = None
    """Of torch on a CPU."""


def run(args: Args) -> None:
    import torch

    from models.dino_wm import DinoWMConfig
    from models.presets import preset

    device = torch.device(pick_device(args.device))
    rows = compare(args, device, preset("released"), DinoWMConfig())
    rows += article(args, device, preset("article"))
    if args.csv is not None:
        write_csv(args.csv, [asdict(row) for row in rows])
    if args.json:
        print_json({"rows": rows, "verdicts": verdicts(rows)})
        return
    show(rows)


def compare(args: Args, device: "torch.device", lewm: "LeWMConfig", twin: "DinoWMConfig") -> list[Row]:
    """The rows of the first table: both models in both modes, and LeWM's floor."""
    import torch

    from infra.bench.solves import Cost, Episode, Published, Search, Tuned, cost, fastest_dtype, narrow
    from models.dino_wm import DinoWM
    from models.lewm import LeWM
    from trainers.throughput import matmul_ceiling

    gpu = device.type == "cuda"
    turns = args.repeats or (10 if gpu else 3)
    search = Search(
        candidates=args.candidates or (300 if gpu else 16),
        iterations=args.iterations or (30 if gpu else 2),
        horizon=args.horizon,
        block=ACTIONS * SKIP,
    )
    few = replace(search, iterations=min(2, search.iterations)) if args.environments > 1 else search
    solves = max(1, STEPS // (SKIP * args.horizon))
    dtype = fastest_dtype(device)
    # On a CPU the twin's activations of more candidates leave the caches.
    chunk = None if gpu else 4 if dtype == torch.bfloat16 else 1
    frames = {
        LEWM: (lewm.stack, lewm.image_size, lewm.image_size, 3),
        TWIN: (twin.image_size, twin.image_size, 3),
        FLOOR: (lewm.stack, 2 * lewm.encoder.patch, 2 * lewm.encoder.patch, 3),
    }
    make = {
        LEWM: lambda: LeWM(lewm, ACTIONS),
        TWIN: lambda: DinoWM(twin, search.block),
        FLOOR: lambda: LeWM(narrow(lewm), ACTIONS),
    }
    sides = {
        (LEWM, PUBLISHED): Published,
        (TWIN, PUBLISHED): Published,
        (LEWM, TUNED): lambda model: Tuned(model, dtype),
        (TWIN, TUNED): lambda model: Tuned(model, dtype),
        (FLOOR, TUNED): lambda model: Tuned(model, dtype),
    }
    searches = {
        (LEWM, PUBLISHED): search,
        (TWIN, PUBLISHED): few,
        (LEWM, TUNED): search,
        (TWIN, TUNED): replace(few, chunk=chunk),
        (FLOOR, TUNED): replace(search, candidates=2),
    }
    contenders, counted, types = {}, {}, {}
    for (name, mode), side in sides.items():
        at_once = args.environments if mode == TUNED and name != TWIN else 1
        made = side(make[name]().eval().to(device))
        contenders[name, mode] = Episode(
            made, searches[name, mode], frames[name], environments=args.environments, group=at_once, solves=solves
        )
        types[name, mode] = made.dtype
        each: Cost = cost(make[name], side, frames[name], searches[name, mode])
        encodings = 1 + 1 / solves if made.tuned else 2
        counted[name, mode] = args.environments * each.solve(searches[name, mode], encodings=encodings)
    with progress("plan", turns * len(contenders), "episodes") as bar:
        figures = _measure({f"{name}, {mode}": call for (name, mode), call in contenders.items()}, turns, bar)
    ceilings = {each: matmul_ceiling(device, each) for each in set(types.values())}
    rows = []
    for (name, mode), flop in counted.items():
        figure, own = figures[f"{name}, {mode}"], searches[name, mode]
        rows.append(
            Row(
                table=COMPARED,
                contender=name,
                mode=mode,
                dtype=_short(types[name, mode]),
                candidates=own.candidates,
                iterations=own.iterations,
                horizon=own.horizon,
                environments=args.environments,
                turns=figure.turns,
                solve_seconds=figure.rate,
                low=figure.low,
                high=figure.high,
                iteration_seconds=figure.rate / own.iterations,
                episode_seconds=figure.rate * solves,
                solve_gflop=flop / 1e9,
                ceiling_share=flop / figure.rate / ceilings[types[name, mode]],
                threads=None if gpu else torch.get_num_threads(),
            )
        )
    return _with_ratios(rows)


def _measure(contenders: Any, turns: int, bar: Any) -> dict[str, Figure]:
    """Seconds, where less is better; every contender has planned once before the clock counts."""
    for call in contenders.values():
        call.warm_up()
    done = 0

    def counted(name: str, call: Any) -> Any:
        def turn() -> float:
            nonlocal done
            seconds, done = call(), done + 1
            bar.update(done, f"{name}: {seconds:.3g} s")
            return seconds

        return turn

    return take_turns({name: counted(name, call) for name, call in contenders.items()}, turns)


def _with_ratios(rows: list[Row]) -> list[Row]:
    """LeWM's rows with how many times its time, and its FLOPs, the twin of the same mode takes for an iteration."""
    twins = {row.mode: row for row in rows if row.contender == TWIN}

    def ratios(row: Row) -> Row:
        if row.contender == TWIN:
            return row
        twin = twins[row.mode]
        assert row.solve_gflop is not None
        assert twin.solve_gflop is not None
        flop_ratio = (twin.solve_gflop / twin.iterations) / (row.solve_gflop / row.iterations)
        return replace(
            row,
            ratio=twin.iteration_seconds / row.iteration_seconds,
            flop_ratio=None if row.contender == FLOOR else flop_ratio,
        )

    return [ratios(row) for row in rows]


def article(args: Args, device: "torch.device", config: "LeWMConfig") -> list[Row]:
    """The rows of the second table: an episode of `STEPS` decisions, planned by the article's model."""
    import torch

    from collectors.envs import EnvConfig, make_env
    from infra.bench.solves import Control, Search, Tuned, fastest_dtype
    from models.lewm import LeWM

    gpu = device.type == "cuda"
    turns = args.repeats or (10 if gpu else 5)
    env = make_env(EnvConfig(name=ENVIRONMENT, size=config.image_size))
    model = Tuned(LeWM(config, env.spec.action_size).eval().to(device), fastest_dtype(device))
    block = config.frame_skip * env.spec.action_size
    controls = {
        iterations: Control(
            env,
            model,
            config,
            Search(candidates=100, iterations=iterations, horizon=SKIP, block=block),
            decisions=STEPS,
        )
        for iterations in (1, 10)
    }
    with progress("episode", turns * len(controls), "episodes") as bar:
        figures = _measure({str(number): call for number, call in controls.items()}, turns, bar)
    rows = []
    for iterations, control in controls.items():
        figure = figures[str(iterations)]
        rows.append(
            Row(
                table=ARTICLE,
                contender=LEWM,
                mode=TUNED,
                dtype=_short(model.dtype),
                candidates=100,
                iterations=iterations,
                horizon=SKIP,
                environments=1,
                turns=figure.turns,
                solve_seconds=figure.rate / control.solves,
                low=figure.low / control.solves,
                high=figure.high / control.solves,
                iteration_seconds=figure.rate / control.solves / iterations,
                episode_seconds=figure.rate,
                simulator_seconds=median(control.simulator),
                rendering_seconds=median(control.rendering),
                threads=None if gpu else torch.get_num_threads(),
            )
        )
    return rows


def verdicts(rows: Sequence[Row]) -> list[str]:
    """What the rows say about the claims: 48 times, and an episode under a second."""
    side = {(row.contender, row.mode): row for row in rows if row.table == COMPARED}
    lewm, twin, floor = side[LEWM, TUNED], side[TWIN, TUNED], side[FLOOR, TUNED]
    assert lewm.ratio is not None
    worst = (twin.low / twin.iterations) / (lewm.high / lewm.iterations)
    found = [
        f"tuned against tuned {lewm.ratio:.0f}x, at least {worst:.0f}x over {lewm.turns} turns of each "
        f"({lewm.flop_ratio:.0f}x in FLOPs): {CLAIM:.0f}x is {'reached' if lewm.ratio >= CLAIM else 'not reached'}"
    ]
    assert floor.ratio is not None
    if floor.ratio < CLAIM:
        found.append(
            f"the kernels of LeWM's solve alone take {floor.solve_seconds:.3g} s with nothing to compute, so that no "
            f"LeWM of this depth is more than {floor.ratio:.0f}x as fast here: the launch floor forbids {CLAIM:.0f}x"
        )
    for row in rows:
        if row.table == ARTICLE:
            under = "under" if row.episode_seconds < 1 else "not under"
            found.append(
                f"article, {row.candidates} x {row.iterations}: an episode of {STEPS} decisions is planned in "
                f"{row.episode_seconds:.2f} s, {under} a second"
            )
    return found


def show(rows: Sequence[Row]) -> None:
    """Both tables and the verdicts."""
    first = [row for row in rows if row.table == COMPARED]
    one = first[0]
    iterations = " or ".join(dict.fromkeys(str(row.iterations) for row in first))
    print_table(
        f"Planning: {one.candidates} candidates x {iterations} iterations, {one.horizon} blocks, "
        f"environments: {one.environments}",
        ("what", "type", "s a solve", "range", "s an episode", "s an iteration", "of ceiling", "twin / it", "in FLOPs"),
        [
            (f"{row.contender}, {row.mode}", row.dtype, f"{row.solve_seconds:.3g}", f"{row.low:.3g}-{row.high:.3g}",
             f"{row.episode_seconds:.3g}", f"{row.iteration_seconds:.3g}",
             "-" if row.contender == FLOOR else f"{row.ceiling_share:.0%}",
             "-" if row.ratio is None else f"{row.ratio:.0f}x",
             "-" if row.flop_ratio is None else f"{row.flop_ratio:.0f}x")
            for row in first
        ],
    )  # fmt: skip
    print_table(
        f"An episode of {STEPS} decisions of {ENVIRONMENT}, planned by the article preset",
        ("candidates", "iterations", "type", "s of planning", "range of a solve", "simulator", "rendering"),
        [
            (str(row.candidates), str(row.iterations), row.dtype, f"{row.episode_seconds:.3g}",
             f"{row.low:.3g}-{row.high:.3g}", f"{row.simulator_seconds:.3g}", f"{row.rendering_seconds:.3g}")
            for row in rows if row.table == ARTICLE
        ],
    )  # fmt: skip
    for line in verdicts(rows):
        say(line)


def _short(dtype: "torch.dtype") -> str:
    return str(dtype).removeprefix("torch.")
