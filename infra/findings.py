"""What the tables in `docs/results` say of a claim: which rows to look up, and what follows from them.

Every function takes the tables and gives a finding, or None where there are no rows. Figures, intervals, counts and
hardware are those of the rows; nothing is measured here and no figure is written here but the claimed ones.
"""

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

THRESHOLD, AIM = 0.92, 0.99
"""R2 that the article claims for linear probes; AUROC of surprise that reliable means here."""
Row = dict[str, str]


class Tables:
    """The CSV files of a folder, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def rows(self, table: str, /, **equal: str) -> list[Row]:
        """Rows of `<table>.csv` whose columns equal what is given; none where there is no such file."""
        path = self._folder / f"{table}.csv"
        if not path.is_file():
            return []
        with path.open(newline="") as file:
            return [row for row in csv.DictReader(file) if all(row[name] == value for name, value in equal.items())]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was measured, where, and what follows for the claim."""

    figure: str
    hardware: str
    verdict: str


def probes(environment: str) -> Callable[[Tables], Finding | None]:
    """Every observable quantity by the linear probe: from one latent what a frame shows, from three what takes more."""

    def find(tables: Tables) -> Finding | None:
        rows = [
            row
            for row in tables.rows("probes", environment=environment, probe="linear")
            if (row["observable"], row["latents"]) in (("one_frame", "1"), ("several_frames", "3"))
            and row["r2"] != "nan"
        ]
        if not rows:
            return None
        runs = _runs(rows)
        shown = [f"{name} {_over_runs(each, 'r2')}" for name, each in _grouped(rows, "quantity")]
        means = {name: mean(float(row["r2"]) for row in each) for name, each in _grouped(rows, "quantity")}
        above = [name for name, value in means.items() if value > THRESHOLD]
        worst = min(means, key=lambda name: means[name])
        figure = f"{'; '.join(shown)}. {runs}, {rows[0]['held_out_episodes']} held-out episodes, `{rows[0]['preset']}`"
        if len(above) == len(means):
            return Finding(figure, _hardware(rows), "met")
        ceiling = mean(float(row["r2_true_state"]) for row in rows if row["quantity"] == worst)
        verdict = f"not met: {len(above)} of {len(means)}; {worst} is {THRESHOLD - means[worst]:.2f} short"
        if ceiling < THRESHOLD:
            verdict += f" (the true state of the same frames, read linearly: {ceiling:.2f})"
        return Finding(figure, _hardware(rows), verdict)

    return find


def velocity_from_one(tables: Tables) -> Finding | None:
    """What a linear probe reads of velocities from a single latent."""
    rows = tables.rows("probes", probe="linear", latents="1", observable="several_frames")
    if not rows:
        return None
    shown = [f"{name} {_over_runs(each, 'r2')}" for name, each in _grouped(rows, "quantity")]
    figure = f"R2 {'; '.join(shown)}, from latents of three stacked frames. {_runs(rows)}"
    return Finding(figure, _hardware(rows), "no single-frame model measured; stacked frames show some of it")


def returns(environment: str, target: float, contender: str = "plan") -> Callable[[Tables], Finding | None]:
    """The return of one contender against a target, beside expert and collecting policies."""

    def find(tables: Tables) -> Finding | None:
        rows = tables.rows("control", environment=environment)
        ours = [row for row in rows if row["contender"] == contender]
        if not ours:
            return None
        others = "; ".join(
            f"{label} {_over_runs(found, 'return', digits=0)}"
            for label, name in (
                ("prior alone", "prior"),
                ("expert", "expert"),
                ("policies that collected", "collection"),
            )
            if (found := [row for row in rows if row["contender"] == name])
        )
        figure = (
            f"{_over_runs(ours, 'return', digits=0)} ({others}). {_runs(ours)}, {ours[0]['episodes']} episodes each, "
            f"`{ours[0]['preset']}` at {int(ours[0]['training_steps']):,} steps"
        )
        value = mean(float(row["return_mean"]) for row in ours)
        verdict = "met" if min(float(row["return_low"]) for row in ours) >= target else _short(value, target)
        return Finding(figure, _hardware(ours), verdict)

    return find


def expert_ceiling(environment: str, target: float) -> Callable[[Tables], Finding | None]:
    """What the expert reaches that an imitating prior learns from."""

    def find(tables: Tables) -> Finding | None:
        rows = tables.rows("experts", task=environment, policy="expert")
        if not rows:
            return None
        row = rows[0]
        value, high = float(row["return_mean"]), float(row["return_high"])
        figure = f"{value:.0f} [{float(row['return_low']):.0f}, {high:.0f}], {row['episodes']} episodes, from the state"
        reason = f"cannot hold by imitation of this expert, which is itself {target - value:.0f} short"
        return Finding(figure, row["hardware"], reason if high < target else "the expert allows it")

    return find


def success(environment: str, target: float) -> Callable[[Tables], Finding | None]:
    """The success rate of planning against a target."""

    def find(tables: Tables) -> Finding | None:
        rows = [row for row in tables.rows("control", environment=environment, contender="plan") if row["success"]]
        if not rows:
            return None
        figure = f"{_over_runs(rows, 'success', digits=2)}. {_runs(rows)}, {rows[0]['episodes']} episodes each"
        value = mean(float(row["success"]) for row in rows)
        verdict = "met" if value >= target else f"not met: {target - value:.2f} short"
        return Finding(figure, _hardware(rows), verdict)

    return find


def beats_collection(environment: str, contender: str) -> Callable[[Tables], Finding | None]:
    """Whether every run's interval lies above that of the policies that collected its data."""

    def find(tables: Tables) -> Finding | None:
        rows = tables.rows("control", environment=environment)
        ours = {row["run"]: row for row in rows if row["contender"] == contender}
        theirs = {row["run"]: row for row in rows if row["contender"] == "collection"}
        if not ours:
            return None
        sure = [run for run, row in ours.items() if float(row["return_low"]) > float(theirs[run]["return_high"])]
        figure = (
            f"{_over_runs(list(ours.values()), 'return', digits=0)} against "
            f"{_over_runs(list(theirs.values()), 'return', digits=0)}. {_runs(list(ours.values()))}"
        )
        verdict = "met" if len(sure) == len(ours) else f"not met for {len(ours) - len(sure)} of {len(ours)}"
        return Finding(figure, _hardware(list(ours.values())), verdict)

    return find


def surprise(
    events: Sequence[tuple[str, str]], aim: float, score: str = "prediction"
) -> Callable[[Tables], Finding | None]:
    """AUROC of some events by one score."""

    def find(tables: Tables) -> Finding | None:
        rows = [row for row in tables.rows("surprise", score=score) if (row["event"], row["size"]) in events]
        if not rows:
            return None
        shown = [
            f"{name} {_over_runs(each, 'auroc')}"
            for name, each in _grouped(rows, lambda row: f"{row['event']} {row['size']}".strip())
        ]
        missed = [row for row in rows if float(row["auroc"]) < aim]
        tasks = ", ".join(dict.fromkeys(row["environment"] for row in rows))
        figure = f"{'; '.join(shown)}. {tasks}, {_runs(rows)}, {rows[0]['episodes']} held-out episodes"
        worst = min(float(row["auroc"]) for row in rows)
        verdict = "met" if not missed else f"not met for {len(missed)} of {len(rows)}; least {worst:.3f}"
        return Finding(figure, _hardware(rows), verdict)

    return find


def ratio(tables: Tables) -> Finding | None:
    """Tuned LeWM against the tuned twin of DINO-WM."""
    rows = tables.rows("plan", table="side by side", contender="LeWM", mode="tuned")
    if not rows:
        return None
    row = rows[0]
    figure = (
        f"{float(row['ratio']):.0f} times (in FLOPs {float(row['flop_ratio']):.0f}): "
        f"{float(row['solve_seconds']):.3g} s a solve of {row['candidates']} candidates x {row['iterations']} "
        f"iterations, {row['turns']} turns"
    )
    verdict = "met" if float(row["ratio"]) >= 48 else _short(float(row["ratio"]), 48)
    return Finding(figure, row["hardware"], verdict + ("" if _on_gpu(row) else "; on a CPU, where FLOPs decide"))


def solve_seconds(tables: Tables) -> Finding | None:
    """A whole plan as the paper has it: 300 candidates, 30 iterations."""
    rows = tables.rows("plan", table="side by side", contender="LeWM", mode="tuned", candidates="300", iterations="30")
    if not rows:
        return None
    row = rows[0]
    seconds = float(row["solve_seconds"])
    figure = f"{seconds:.3g} s [{float(row['low']):.3g}, {float(row['high']):.3g}], {row['turns']} turns"
    return Finding(figure, row["hardware"], "met" if seconds <= 0.98 else f"not met: {seconds - 0.98:.2f} s more")


def article_episode(tables: Tables) -> Finding | None:
    """Planning an episode of 50 decisions with 100 candidates, by the article's model."""
    rows = tables.rows("plan", table="article")
    if not rows:
        return None
    shown = [f"{float(row['episode_seconds']):.2f} s with 100 x {row['iterations']}" for row in rows]
    under = [float(row["episode_seconds"]) < 1 for row in rows]
    verdict = "met" if all(under) else "met with 1 iteration, not with 10" if any(under) else "not met"
    return Finding(f"{', '.join(shown)}; 50 decisions, {rows[0]['turns']} turns", rows[0]["hardware"], verdict)


def half_a_million(tables: Tables) -> Finding | None:
    """Hours that 500,000 steps of the article's model take at the measured rate, on a GPU."""
    rows = [row for row in tables.rows("training", preset="article", contender="lewm, loader") if _on_gpu(row)]
    if not rows:
        return None
    rate = float(rows[0]["steps_per_second"])
    hours = 500_000 / rate / 3600
    figure = (
        f"{hours:.1f} h at {rate:.0f} steps/s, batch {rows[0]['batch']}, extrapolated from {rows[0]['steps']} steps"
    )
    return Finding(figure, rows[0]["hardware"], "met" if hours <= 3 else f"not met: {hours - 3:.1f} h more")


def one_parameter(tables: Tables) -> Finding | None:
    """The sweep of the regularizer's weight: mean R2 and effective rank."""
    rows = tables.rows("lambda")
    if not rows:
        return None
    shown = [
        f"{row['weight']}: R2 {float(row['r2_mean']):.2f}, rank {float(row['effective_rank']):.0f}" for row in rows
    ]
    scores = {float(row["weight"]): float(row["r2_mean"]) for row in rows}
    regular = [value for weight, value in scores.items() if weight > 0]
    best = max(scores, key=lambda weight: scores[weight])
    figure = (
        f"{'; '.join(shown)} of {rows[0]['latent_dim']}. {rows[0]['training_steps']} steps of `{rows[0]['preset']}`"
    )
    without = scores.get(0.0, float("nan"))
    verdict = f"R2 {without:.2f} without the term, {min(regular):.2f} to {max(regular):.2f} with it; best at {best:g}"
    return Finding(figure, _hardware(rows), verdict)


def mixture_prior(tables: Tables) -> Finding | None:
    """Mean R2 of every task with a mixture of Gaussians and with one, on the same seeds."""
    rows = tables.rows("mixture")
    if not rows:
        return None
    shown, gains = [], []
    for task, some in _grouped(rows, "environment"):
        targets = dict(_grouped(some, "target"))
        means = {name: mean(float(row["r2_mean"]) for row in each) for name, each in targets.items()}
        shown.append(f"{task}: " + ", ".join(f"{name} {value:.3f}" for name, value in means.items()))
        one = {row["seed"]: float(row["r2_mean"]) for row in targets["one Gaussian"]}
        gains += [float(row["r2_mean"]) - one[row["seed"]] for row in targets["mixture"]]
    seeds = len({row["seed"] for row in rows})
    trained = f"{seeds} training seeds, {rows[0]['training_steps']} steps of `{rows[0]['preset']}`"
    figure = f"mean R2 {'; '.join(shown)}. {trained}"
    better = sum(gain > 0 for gain in gains)
    verdict = f"better in {better} of {len(gains)} pairs of task and seed, by {mean(gains):+.3f} on average"
    return Finding(figure, _hardware(rows), f"met: {verdict}" if better == len(gains) else f"not met: {verdict}")


def remembering(tables: Tables) -> Finding | None:
    """Mean R2 over quantities at blank frames and at all, by three models on the same seeds."""
    rows = tables.rows("memory")
    if not rows:
        return None
    scores = {
        key: {seed: mean(float(row["r2"]) for row in each) for seed, each in _grouped(some, "seed")}
        for key, some in _grouped(rows, lambda row: f"{row['frames']}/{row['model']}")
    }
    models = list(dict.fromkeys(row["model"] for row in rows))
    shown = [
        f"{where} frames: " + ", ".join(f"{name} {mean(scores[f'{where}/{name}'].values()):.2f}" for name in models)
        for where in ("blank", "all")
    ]
    memory = scores["blank/recurrent memory"]
    beaten = [name for name in models if all(value > scores[f"blank/{name}"][seed] for seed, value in memory.items())]
    figure = (
        f"mean R2 at {'; at '.join(shown)}. {float(rows[0]['masked']):.0%} of frames blank, {len(memory)} training "
        f"seeds, {rows[0]['training_steps']} steps of `{rows[0]['preset']}` on {rows[0]['environment']}"
    )
    others = [name for name in models if name != "recurrent memory"]
    lost = [name for name in others if name not in beaten]
    verdict = (
        f"not met: not above {' and '.join(lost)} in every seed" if lost else "met, at blank frames, in every seed"
    )
    return Finding(figure, _hardware(rows), verdict)


def straightness(tables: Tables) -> Finding | None:
    """Mean cosine between successive latent velocities, on held-out windows."""
    rows = tables.rows("validation", metric="val/latents/straightness")
    if not rows:
        return None
    figure = "; ".join(f"{row['environment']} seed {row['seed']}: {float(row['value']):.2f}" for row in rows)
    return Finding(f"{figure}, at the end of training", _hardware(rows), "no figure in the text to compare with")


def an_hour(tables: Tables) -> Finding | None:
    """Minutes of `lewm run dmc/cartpole-swingup --scale small`."""
    rows = tables.rows("run", environment="dmc/cartpole-swingup", stage="all", device="cpu")
    if not rows:
        return None
    minutes = [float(row["seconds"]) / 60 for row in rows]
    figure = f"{', '.join(f'{each:.0f}' for each in minutes)} minutes, collection to report. {_runs(rows)}"
    verdict = "met" if max(minutes) <= 60 else f"not met: {max(minutes) - 60:.0f} minutes more"
    return Finding(figure, _hardware(rows), verdict)


def article_parameters(tables: Tables) -> Finding | None:
    """Parameters of the article's model and of the authors' own, counted."""
    from models.presets import describe  # loads torch

    counted = {row.preset: row.parameters for row in describe(2)}
    ours, theirs = (counted[name] / 1e6 for name in ("article", "released"))
    figure = f"`article` {ours:.2f}M; the authors' model (`released`) {theirs:.2f}M"
    verdict = "met" if abs(ours - 15) <= 1 else f"not met: {abs(ours - 15):.1f}M off"
    return Finding(figure, "any", f"{verdict}; the authors' model is {theirs / 15 - 1:.0%} larger")


def tested(tables: Tables) -> Finding | None:
    """For what a test shows instead of a table."""
    return Finding("a test of the suite", "any", "does not hold here: the loss is that of the global batch")


def _grouped(rows: Iterable[Row], by: str | Callable[[Row], str]) -> list[tuple[str, list[Row]]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[by] if isinstance(by, str) else by(row), []).append(row)
    return list(groups.items())


def _over_runs(rows: Sequence[Row], what: str, digits: int = 3) -> str:
    """One run's figure with its interval over episodes; of several runs the mean, the least and the most."""
    name = "return_mean" if what == "return" else what
    values = [float(row[name]) for row in rows]
    if len(rows) == 1:
        low, high = float(rows[0][f"{what}_low"]), float(rows[0][f"{what}_high"])
        return f"{values[0]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _runs(rows: Sequence[Row]) -> str:
    count = len({row["run"] for row in rows})
    return f"n = {count} training seed{'s' * (count > 1)}"


def _short(value: float, target: float) -> str:
    return f"not met: {target - value:.0f} short of {target:g}" if value < target else f"not surely met: {value:.0f}"


def _hardware(rows: Sequence[Row]) -> str:
    return "; ".join(dict.fromkeys(row["hardware"] for row in rows))


def _on_gpu(row: Row) -> bool:
    return "NVIDIA" in row["hardware"]
