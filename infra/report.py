"""One self-contained HTML page about one run or several: what was trained on what, and what it is worth.

Everything is in the file, pictures and clips too, so that it can be sent and kept; it needs no script and no network.
It shows the scorecards that the run directory holds and the curves and figures that MLflow holds, computes nothing, and
says what was not measured and by which command it would be.
"""

import base64
import html
import io
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from infra.tracking import MlflowTracker
from models.lewm import LeWM
from shards.dataset import Dataset
from trainers.config import TrainConfig, config_json
from trainers.evaluation.control import ControlScorecard
from trainers.evaluation.planning import PlanningScore
from trainers.evaluation.scorecard import ProbeScorecard, read_scorecard
from trainers.evaluation.surprise import SurpriseScorecard
from trainers.evaluation.surprise_scores import SCORES
from trainers.rundir import Run

_CURVES = {
    "Prediction loss, held-out windows": ("val/prediction", True),
    "Prediction loss, training": ("train/prediction", True),
    "Regularizer": ("train/regularizer", True),
    "Effective rank of the latents": ("train/effective_rank", False),
    "Steps a second": ("train/steps_per_second", False),
    "Share of time waiting for data": ("data/wait_share", False),
}
_CAPTIONS = {
    "probe_scatter": "Truth against linear prediction, held-out episodes",
    "latent_map": "Latents of held-out episodes, coloured by physical state",
    "rollout_strip": "What happened, and what the model imagined",
    "planning_strip": "Starts, where planning ended, and goals",
    "surprise_prediction": "Prediction error around events in the simulator",
    "surprise_mahalanobis": "Mahalanobis distance around events in the simulator",
    "surprise_auroc": "AUROC of every event by every score",
    "control_strip": "An episode of planning with the model",
}
_COLOURS = ("#2a6f97", "#e07a5f", "#3d8f6f", "#8a5a9e", "#b08d2f", "#5f6c7b")


@dataclass(frozen=True, slots=True)
class Story:
    """All that a page says of a run. Scorecards are None where nothing was measured."""

    name: str
    config: TrainConfig
    dataset: Dataset
    parameters: int
    run_id: str
    tags: dict[str, str]
    history: dict[str, list[tuple[int, float]]]
    pictures: dict[str, bytes]
    """Figures (PNG) by name."""
    clips: dict[str, bytes]
    """Animations (GIF) by name."""
    probe: ProbeScorecard | None
    surprise: SurpriseScorecard | None
    plan: PlanningScore | None
    control: ControlScorecard | None


def gather(run: Run, tracker: MlflowTracker, model: LeWM) -> Story:
    """Read what there is of a run. ValueError for a scorecard that this program does not understand."""
    pictures, clips = {}, {}
    with tempfile.TemporaryDirectory() as place:
        for entry in tracker.client.list_artifacts(tracker.run_id, "figures"):
            path = Path(tracker.client.download_artifacts(tracker.run_id, entry.path, place))
            kind = {".png": pictures, ".gif": clips}.get(path.suffix)
            if kind is not None:
                kind[path.stem] = path.read_bytes()
    found = tracker.client.get_run(tracker.run_id)
    return Story(
        name=run.record.name,
        config=run.config,
        dataset=Dataset.open(run.config.data),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        run_id=tracker.run_id,
        tags=dict(found.data.tags),
        history=tracker.history([name for name, _ in _CURVES.values()]),
        pictures=pictures,
        clips=clips,
        probe=read_scorecard(run.path, "probe", ProbeScorecard),
        surprise=read_scorecard(run.path, "surprise", SurpriseScorecard),
        plan=read_scorecard(run.path, "plan", PlanningScore),
        control=read_scorecard(run.path, "control", ControlScorecard),
    )


def page(stories: Sequence[Story]) -> str:
    """The page, as HTML."""
    names = ", ".join(story.name for story in stories)
    body = [
        _section("At a glance", _glance(stories)),
        _section("Runs and data", _facts(stories)),
        _section("Training", _curves(stories)),
        _section("Probes", *_each(stories, lambda story: _probes(story))),
        _section("Surprise", *_each(stories, lambda story: _surprise(story))),
        _section("Planning to goals", *_each(stories, lambda story: _planning(story))),
        _section("Control", *_each(stories, lambda story: _control(story))),
        _section("Configuration", *_each(stories, lambda story: f"<pre>{_text(config_json(story.config))}</pre>")),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(names)}</title><style>{_STYLE}</style></head><body><header><p>LeWorldModel</p>"
        f"<h1>{_text(names)}</h1></header><main>{''.join(body)}</main></body></html>\n"
    )


def _glance(stories: Sequence[Story]) -> str:
    rows: list[tuple[str, Callable[[Story], str]]] = [
        ("Probes: mean R2 of observable columns, three latents", lambda s: f"{s.probe.r2_mean:.3f}" if s.probe else ""),
        ("Probes: columns above 0.92, linear", _passed),
        ("Effective rank of the latents", _rank),
        ("Surprise: events with AUROC of 0.99 or more, by prediction error", _noticed),
        ("Goals: share of the way, planned", lambda s: f"{s.plan.planned_progress:.0%}" if s.plan else ""),
        ("Goals: share of the way, random actions", lambda s: f"{s.plan.random_progress:.0%}" if s.plan else ""),
        ("Control: return of planning with LeWM", lambda s: _return(s, "plan")),
        ("Control: return of the prior alone, on its latents", lambda s: _return(s, "prior")),
        ("Control: return of the policies that collected", lambda s: _return(s, "collection")),
        ("Control: return of the data's expert, from the state", lambda s: _return(s, "expert")),
    ]  # fmt: skip
    return _table(
        ("", *(story.name for story in stories)), [(what, *(tell(s) or "-" for s in stories)) for what, tell in rows]
    )


def _rank(story: Story) -> str:
    return f"{story.probe.effective_rank:.0f} of {story.probe.latent_dim}" if story.probe else ""


def _passed(story: Story) -> str:
    if story.probe is None:
        return ""
    verdict = next(each for each in story.probe.verdicts if each.probe == "linear")
    return f"{verdict.passed} of {verdict.columns}"


def _noticed(story: Story) -> str:
    if story.surprise is None:
        return ""
    found = [each for each in story.surprise.scores if each.score == "prediction"]
    return f"{sum(each.detection.auroc >= 0.99 for each in found)} of {len(found)}"


def _return(story: Story, who: str) -> str:
    scores = [each for each in story.control.scores if each.name == who] if story.control else []
    return f"{scores[0].mean:.1f} [{scores[0].low:.1f}, {scores[0].high:.1f}]" if scores else ""


def _facts(stories: Sequence[Story]) -> str:
    rows: list[tuple[str, Callable[[Story], object]]] = [
        ("Preset", lambda s: s.config.preset),
        ("Parameters", lambda s: f"{s.parameters:,}"),
        ("Environment", lambda s: s.dataset.environment),
        ("Episodes (train/validation/test)", lambda s: "/".join(map(str, s.dataset.manifest.splits.values()))),
        ("Frames", lambda s: f"{s.dataset.manifest.n_frames:,} of {s.dataset.size} px"),
        ("Dataset digest", lambda s: s.dataset.digest[:16]),
        ("Steps x batch", lambda s: f"{s.config.stop_step:,} x {s.config.batch_size}"),
        ("Seed", lambda s: s.config.seed),
        ("Code", lambda s: s.tags.get("mlflow.source.git.commit", "")[:12] or "-"),
        ("MLflow run", lambda s: s.run_id),
    ]
    return _table(
        ("", *(story.name for story in stories)), [(what, *(str(tell(s)) for s in stories)) for what, tell in rows]
    )


def _curves(stories: Sequence[Story]) -> str:
    drawn = []
    for title, (metric, logarithmic) in _CURVES.items():
        series = {story.name: story.history.get(metric) or [] for story in stories}
        if any(series.values()):
            drawn.append(f"<figure>{_chart(series, logarithmic)}<figcaption>{title}</figcaption></figure>")
    return f'<div class="grid">{"".join(drawn)}</div>' if drawn else _missing("no curve is recorded", "train")


def _chart(series: dict[str, list[tuple[int, float]]], logarithmic: bool) -> str:
    figure = Figure(figsize=(4.6, 2.7), layout="constrained")
    axis = figure.subplots()
    for colour, (name, points) in zip(_COLOURS * len(series), series.items(), strict=False):
        if points:
            axis.plot(*zip(*points, strict=True), color=colour, label=name, linewidth=1.4)
    if logarithmic and all(value > 0 for points in series.values() for _, value in points):
        axis.set_yscale("log")
    axis.set_xlabel("step", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        axis.legend(frameon=False, fontsize=7)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def _probes(story: Story) -> str:
    card = story.probe
    if card is None:
        return _missing("the latents were not probed", f"probe {story.name}")
    one, three = card.scores("lewm"), card.scores("lewm", window=3)
    beside = [("random encoder", "random_encoder"), ("pixel PCA", "pixel_pca"), ("true state", "true_state")]
    known = {(each.source, each.probe, each.window): each.scores for each in card.results}
    others = [(label, known.get((source, "linear", 1))) for label, source in beside]
    mlp = known.get(("lewm", "mlp", 3))
    rows = []
    for index, score in enumerate(one):
        cells = [_text(score.target), _text(score.observable.replace("_", " ")), _bar(score.r2, score.low, score.high)]
        cells.append(_bar(three[index].r2, three[index].low, three[index].high))
        cells.append(_number(mlp[index].r2 if mlp else math.nan))
        cells += [_number(scores[index].r2 if scores else math.nan) for _, scores in others]
        rows.append(cells)
    head = ("quantity", "shown by", "one latent", "three latents", "three, MLP", *(label for label, _ in others))
    told = (
        f"R2 on {card.n_held_out} held-out episodes ({card.episodes}), probes fitted on {card.n_train}; 95 % intervals"
    )
    pictures = _pictures(story, "probe_scatter", "latent_map", "rollout_strip")
    return f"<p>{told}.</p>{_table(head, rows, raw=True)}{pictures}"


def _surprise(story: Story) -> str:
    card = story.surprise
    if card is None:
        return _missing("no event was played", f"surprise {story.name}")
    rows = [
        [_text(record.label)] + [_number(card.of(record.event, record.size, score).auroc) for score in SCORES]
        for record in card.records
    ]
    head = ("event", *(score.replace("_", " ") for score in SCORES))
    clips = "".join(_image(data, "gif", name.removeprefix("surprise_")) for name, data in sorted(story.clips.items()))
    return (
        f"<p>AUROC of frames with an event against the same frames without, {card.n_episodes} episodes.</p>"
        f"{_table(head, rows, raw=True)}{_pictures(story, 'surprise_prediction', 'surprise_mahalanobis')}"
        f'<div class="grid">{clips}</div>'
    )


def _planning(story: Story) -> str:
    score = story.plan
    if score is None:
        return _missing("no goal was planned for", f"plan {story.name}")
    rows = [
        ("start", f"{score.start_distance:.3f}", ""),
        ("random actions", f"{score.random_distance:.3f}", f"{score.random_progress:.0%}"),
        (f"planned ({score.planner})", f"{score.planned_distance:.3f}", f"{score.planned_progress:.0%}"),
    ]
    told = f"{score.goals} goals, {score.decisions} decisions each; {score.seconds_per_solve:.2f} s a solve of all"
    head = ("", "distance to the goal, in standard deviations", "of the way")
    return f"<p>{told}.</p>{_table(head, rows)}{_pictures(story, 'planning_strip')}"


def _control(story: Story) -> str:
    card = story.control
    if card is None:
        return _missing("the task was not played", f"control {story.name}")
    rows = []
    for score in card.scores:
        success = "" if score.success is None else f"{score.success:.0%}"
        seconds = "" if score.planning_seconds is None else f"{score.planning_seconds:.2f}"
        rows.append(
            (
                score.name,
                f"{score.mean:.1f}  [{score.low:.1f}, {score.high:.1f}]",
                success,
                str(score.episodes),
                seconds,
            )
        )
    head = ("who acts", "return [95 %]", "success", "episodes", "seconds of planning an episode")
    labelled = (
        f" The prior imitates a state expert, in {card.dagger_episodes} episodes of its own."
        if card.dagger_episodes
        else ""
    )
    told = f"{card.decisions} decisions an episode.{labelled}"
    return f"<p>{told}</p>{_table(head, rows)}{_pictures(story, 'control_strip')}"


def _each(stories: Sequence[Story], tell: Callable[[Story], str]) -> Iterable[str]:
    for story in stories:
        if len(stories) > 1:
            yield f"<h3>{_text(story.name)}</h3>"
        yield tell(story)


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{title}</h2>{''.join(parts)}</section>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, raw: bool = False) -> str:
    """A table that scrolls sideways where it is wider than the screen; `raw` cells are HTML already."""
    shown = rows if raw else [[_text(cell) for cell in row] for row in rows]
    top = "".join(f"<th>{_text(name)}</th>" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in shown)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def _bar(value: float, low: float, high: float) -> str:
    """A number with a bar behind it, from 0 to 1, and its interval."""
    if math.isnan(value):
        return "-"
    width = 100 * min(1.0, max(0.0, value))
    good = "good" if value > 0.92 else ""
    return f'<span class="bar {good}" style="--w:{width:.1f}%"><b>{value:.3f}</b> [{low:.3f}, {high:.3f}]</span>'


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _pictures(story: Story, *names: str) -> str:
    return "".join(_image(story.pictures[name], "png", _CAPTIONS[name]) for name in names if name in story.pictures)


def _image(data: bytes, kind: str, caption: str) -> str:
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    caption = _text(caption.replace("_", " "))
    return f'<figure><img alt="{caption}" src="{source}"><figcaption>{caption}</figcaption></figure>'


def _missing(what: str, verb: str) -> str:
    return f'<p class="none">Not measured: {_text(what)}. <code>lewm {_text(verb)}</code></p>'


def _text(value: Any) -> str:
    return html.escape(str(value))


_STYLE = """
:root { --ink: #1d2733; --soft: #5b6875; --line: #dfe5ea; --paper: #fbfcfd; --accent: #2a6f97; --good: #3d8f6f }
* { box-sizing: border-box }
body { margin: 0; color: var(--ink); background: var(--paper); font: 16px/1.55 system-ui, sans-serif }
header { padding: 2.5rem max(1rem, calc(50vw - 34rem)) 1.5rem; background: #10222f; color: #fff }
header p { margin: 0; letter-spacing: .08em; text-transform: uppercase; font-size: .8rem; color: #9fc3d8 }
h1 { margin: .2rem 0 0; font-size: clamp(1.3rem, 4vw, 2.1rem); line-height: 1.2; overflow-wrap: anywhere }
main { max-width: 70rem; margin: 0 auto; padding: 0 1rem 4rem }
section { margin-top: 2.4rem }
h2 { margin: 0 0 .8rem; font-size: 1.25rem }
h3 { margin: 1.6rem 0 .5rem; font-size: 1rem; color: var(--soft); overflow-wrap: anywhere }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; background: #fff }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .5rem .8rem; text-align: left; white-space: nowrap; border-top: 1px solid var(--line) }
@media (max-width: 44rem) {
  th, td { padding: .4rem .5rem }
  th:first-child, td:first-child { white-space: normal; min-width: 9rem }
}
thead th { border-top: 0; color: var(--soft); font-weight: 600; background: #f4f7f9 }
.bar { display: inline-block; min-width: 12rem; padding: .1rem .4rem; border-radius: 4px;
  background: linear-gradient(90deg, #d5e6f0 var(--w), transparent var(--w)) }
.bar.good { background: linear-gradient(90deg, #d3ebdf var(--w), transparent var(--w)) }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 1rem }
figure { margin: 1rem 0; padding: .8rem; border: 1px solid var(--line); border-radius: 8px; background: #fff }
.grid figure { margin: 0 }
figure img, figure svg { display: block; width: 100%; height: auto }
figcaption { margin-top: .5rem; color: var(--soft); font-size: .85rem }
.none { color: var(--soft) }
code, pre { font: .85rem/1.5 ui-monospace, monospace }
pre { max-height: 24rem; overflow: auto; padding: 1rem; border: 1px solid var(--line); border-radius: 8px;
  background: #fff }
"""
