"""Is a model surprised when it should be? Events in the simulator against the same rollouts without them.

For every held-out episode and every event (`events`) there are two rollouts from the same seed with the same actions
(`rollouts`); every frame of both gets the scores of `surprise_scores`. Positives are the frames from the event until it
has left the observations' window, Hk + (n-1)s frames; of events that go on, all frames to the rollout's end. Negatives
are the same frames of the clean rollout. `detection` turns both into AUROC, delay and false alarms. Means, covariances
and nothing else come from training episodes; nothing is tuned on the events.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from models.lewm import LeWM, LeWMConfig
from shards.dataset import Dataset
from trainers.evaluation.detection import Detection, detect
from trainers.evaluation.latents import encode_stacks, held_out, model_encoder, spread_out
from trainers.evaluation.surprise_scores import BASELINES, KL_FRAMES, SCORES, Score, Scorer

if TYPE_CHECKING:  # loads MuJoCo, which fixes the GL backend
    from trainers.evaluation.events import Event
    from trainers.evaluation.rollouts import Clean, Stage

AIM = 0.99
"""AUROC to be reached for obstacles and large changes of state."""
_TRAINING_FRAMES = 20_000
_VISIBLE = 8
"""Levels by which a pixel must differ to count as changed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SurpriseConfig:
    """How surprise is measured."""

    episodes: int = 40
    """Held-out episodes, one moment each; all, where there are fewer."""
    before: int = 30
    """Frames before the event; more, where the scores need them."""
    after: int = 20
    """Frames from the event on; more, where it needs them to leave the window."""
    seed: int = 0
    """Of moments and events."""

    def __post_init__(self) -> None:
        for name, least in (("episodes", 2), ("before", 1), ("after", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class EventScore:
    """One event at one size by one score."""

    event: str
    size: str
    score: Score
    detection: Detection


@dataclass(frozen=True, slots=True)
class EventRecord:
    """What an event was: `frames` positives a rollout, and the mean share of pixels changed where most were.

    `diverged` rollouts are left out, because the simulator did not survive the event.
    """

    event: str
    size: str
    lasting: bool
    frames: int
    pixels_changed: float
    diverged: int = 0

    @property
    def label(self) -> str:
        return f"{self.event} ({self.size})" if self.size else self.event


@dataclass(frozen=True, slots=True)
class SurpriseVerdict:
    """Obstacles and large changes of state whose AUROC by one score is at least `aim`, and the others."""

    score: Score
    aim: float
    reached: tuple[str, ...]
    missed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SurpriseScorecard:
    """Every event by every score. `not_here` says which events the environment has nothing for.

    `before` and `after` count frames before the event's and from it on, `window` those until it has left the window.
    """

    episodes: str
    n_episodes: int
    before: int
    after: int
    window: int
    seed: int
    records: tuple[EventRecord, ...]
    scores: tuple[EventScore, ...]
    not_here: tuple[str, ...]
    verdicts: tuple[SurpriseVerdict, ...]

    def of(self, event: str, size: str, score: Score) -> Detection:
        return next(
            each.detection for each in self.scores if (each.event, each.size, each.score) == (event, size, score)
        )

    def metrics(self) -> dict[str, float]:
        """`surprise/<score>/<auroc|delay|detected|false_alarms>/<event>[_<size>]`."""
        metrics: dict[str, float] = {}
        for each in self.scores:
            event = f"{each.event}{f'_{each.size}' if each.size else ''}"
            for value in ("auroc", "delay", "detected", "false_alarms"):
                if (figure := getattr(each.detection, value)) is not None:
                    metrics[f"surprise/{each.score}/{value}/{event}"] = figure
        return metrics | {f"surprise/{each.score}/reached": float(len(each.reached)) for each in self.verdicts}


@dataclass(frozen=True, slots=True)
class Curves:
    """For figures: scores {score: (E, frames)} of rollouts around the event, and the frames of the first of them."""

    scores: dict[Score, np.ndarray]
    frames: np.ndarray


@dataclass(frozen=True, slots=True)
class SurpriseReport:
    """The scorecard, curves of every event by its label, and those of clean rollouts; event frame at `before`."""

    scorecard: SurpriseScorecard
    clean: Curves
    events: dict[str, Curves]


def window_frames(config: LeWMConfig) -> int:
    """Frames from a moment on whose observations, or those that they are predicted from, straddle it."""
    return config.history * config.frame_skip + (config.stack - 1) * config.stack_stride


def frames_around(config: LeWMConfig, settings: SurpriseConfig) -> tuple[int, int]:
    """Frames before the event's and from it on, so that every score is there for every positive, and once before."""
    lead = (config.stack - 1) * config.stack_stride
    needed = lead + max(config.history * config.frame_skip, KL_FRAMES - 1) + 1
    return max(settings.before + lead, needed), max(settings.after, window_frames(config))


def judge_surprise(
    model: LeWM,
    dataset: Dataset,
    stage: "Stage",
    events: "tuple[Event, ...]",
    settings: SurpriseConfig,
    on_episode: Callable[[int, int], None] | None = None,
) -> SurpriseReport:
    """Judge a model by events. `stage` is the dataset's environment with `frames_around` the event."""
    from trainers.evaluation.rollouts import Diverged  # loads MuJoCo

    config = model.config
    episodes, split = held_out(dataset)
    moments = stage.moments(episodes, settings.episodes, settings.seed)
    if len(moments) < 2:
        raise ValueError("intervals need two held-out episodes or more: collect more episodes")
    judge = _Judge(model, fit_scorer(model, dataset), (config.stack - 1) * config.stack_stride)
    clean_scores: list[dict[Score, np.ndarray]] = []
    event_scores: dict[str, list[dict[Score, np.ndarray]]] = {}
    survived: dict[str, list[int]] = {}
    changed: dict[str, list[float]] = {}
    shown: dict[str, np.ndarray] = {}
    here: list[Event] = []
    not_here: list[str] = []
    for number, moment in enumerate(moments):
        clean = stage.clean(moment)
        if not number:
            here, not_here = stage.possible(clean, list(events))
            shown[""] = clean.frames
        latents = judge.encode(clean.frames)
        clean_scores.append(judge.scores(clean, clean.frames, latents))
        for index, event in enumerate(here):
            rng = np.random.default_rng([settings.seed, 1, moment.episode, index])
            try:
                frames = np.concatenate([clean.frames[: stage.before], stage.event(clean, event, rng)])
            except Diverged:
                continue
            survived.setdefault(event.label, []).append(number)
            scores = judge.scores(clean, frames, judge.encode_from(frames, stage.before, latents))
            event_scores.setdefault(event.label, []).append(scores)
            changed.setdefault(event.label, []).append(_changed(frames, clean.frames))
            shown.setdefault(event.label, frames)
        if on_episode is not None:
            on_episode(number + 1, len(moments))

    lead = judge.lead
    at, window = stage.before - lead, window_frames(config)
    calm = _stacked(clean_scores)
    for event in here:
        if len(survived.get(event.label, ())) < 2:
            not_here.append(f"{event.label}: the simulator diverged in nearly all rollouts")
    here = [event for event in here if len(survived.get(event.label, ())) >= 2]
    curves = {event.label: Curves(_stacked(event_scores[event.label]), shown[event.label]) for event in here}
    records, scores = [], []
    for event in here:
        count, same = stage.after if event.lasting else window, survived[event.label]
        pixels, diverged = float(np.mean(changed[event.label])), len(moments) - len(same)
        records.append(EventRecord(event.name, event.size, event.lasting, count, pixels, diverged))
        for score in SCORES:
            positives = curves[event.label].scores[score][:, at : at + count]
            background = calm[score][same]
            found = detect(positives, background[:, at : at + count], background)
            scores.append(EventScore(event.name, event.size, score, found))
    scorecard = SurpriseScorecard(
        episodes=split,
        n_episodes=len(moments),
        before=at,
        after=stage.after,
        window=window,
        seed=settings.seed,
        records=tuple(records),
        scores=tuple(scores),
        not_here=tuple(not_here),
        verdicts=tuple(verdict(scores, score) for score in SCORES if score not in BASELINES),
    )
    return SurpriseReport(scorecard, Curves(calm, shown[""]), curves)


def fit_scorer(model: LeWM, dataset: Dataset) -> Scorer:
    """What latents and errors are like on training episodes."""
    first = (model.config.stack - 1) * model.config.stack_stride
    encoders, rollouts = {"lewm": model_encoder(model)}, []
    for i in spread_out(dataset, dataset.indices("train"), _TRAINING_FRAMES):
        episode = dataset.read_episode(int(i))
        z = encode_stacks(episode.frames, np.arange(first, len(episode.frames)), model.config, encoders)["lewm"]
        if len(z) > model.config.history * model.config.frame_skip:
            device = model.pixel_mean.device
            rollouts.append((torch.from_numpy(z).to(device), torch.tensor(episode.action[first:]).to(device)))
    return Scorer.fit(model, rollouts)


@dataclass(frozen=True, slots=True)
class _Judge:
    """Scores of rollouts; the first `lead` frames are only seen in stacks."""

    model: LeWM
    scorer: Scorer
    lead: int

    def encode(self, frames: np.ndarray) -> torch.Tensor:
        return self.encode_from(frames, self.lead, torch.empty(0, self.model.config.latent_dim))

    def encode_from(self, frames: np.ndarray, begin: int, known: torch.Tensor) -> torch.Tensor:
        """Latents (T, D), those of frames before `begin` taken from `known`."""
        encoders = {"lewm": model_encoder(self.model)}
        z = encode_stacks(frames, np.arange(begin, len(frames)), self.model.config, encoders)["lewm"]
        return torch.cat([known[: begin - self.lead].cpu(), torch.from_numpy(z)]).to(self.model.pixel_mean.device)

    def scores(self, clean: "Clean", frames: np.ndarray, latents: torch.Tensor) -> dict[Score, np.ndarray]:
        action = torch.from_numpy(clean.action[self.lead :]).to(latents.device)
        return self.scorer.scores(frames[self.lead :], latents, action)


def _stacked(scores: list[dict[Score, np.ndarray]]) -> dict[Score, np.ndarray]:
    return {name: np.stack([each[name] for each in scores]) for name in SCORES}


def _changed(frames: np.ndarray, clean: np.ndarray) -> float:
    """The share of pixels that differ visibly, in the frame where most do."""
    difference = np.abs(frames.astype(np.int16) - clean).max(axis=-1)
    return float((difference > _VISIBLE).mean(axis=(1, 2)).max())


def verdict(scores: list[EventScore], score: Score) -> SurpriseVerdict:
    """Which of the events that must not be missed reach the aim by one score."""
    aimed = [each for each in scores if each.score == score and (each.event == "obstacle" or each.size == "large")]
    names = {f"{each.event} ({each.size})": each.detection.auroc >= AIM for each in aimed}
    return SurpriseVerdict(
        score, AIM, tuple(name for name, met in names.items() if met), tuple(n for n, met in names.items() if not met)
    )
