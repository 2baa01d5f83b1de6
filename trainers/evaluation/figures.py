"""Figures of a run. Every function takes data and returns a matplotlib Figure; none touches pyplot's global state."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from models.lewm import LeWM
from shards.dataset import Dataset
from trainers.evaluation.latents import EpisodeFeatures, observations
from trainers.evaluation.probes import ProbeFit, targets

_ACCENT, _MUTED = "#2a6f97", "#9aa5b1"


def loss_curves(history: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Prediction and regularizer over steps, training and validation, from {metric: [(step, value), ...]}."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, label, colour in (
        ("train/prediction", "training", _ACCENT),
        ("val/prediction", "validation", "#e07a5f"),
    ):
        if history.get(name):
            left.plot(*zip(*history[name], strict=True), label=label, color=colour)
    left.set(title="Prediction loss", xlabel="step", yscale="log")
    if history.get("train/regularizer"):
        right.plot(*zip(*history["train/regularizer"], strict=True), color=_ACCENT, label="regularizer")
    if history.get("train/regularizer_null"):
        null = history["train/regularizer_null"][-1][1]
        if np.isfinite(null):
            right.axhline(null, color=_MUTED, linestyle="--", label="on N(0, I) samples")
    right.set(title="Distance from N(0, I)", xlabel="step", yscale="log")
    for axes in (left, right):
        if axes.lines:  # a run may end before it has logged anything
            axes.legend(frameon=False)
    return figure


def probe_scatter(fits: Mapping[int, ProbeFit], points: int = 2000) -> Figure:
    """Truth against linear prediction on held-out episodes, one panel a target, by fits from 1 and 3 latents.

    What takes several frames to see is shown from three latents, the rest from one.
    """
    chosen = [(3 if score.observable == "several_frames" else 1, i) for i, score in enumerate(fits[1].scores)]
    columns = min(len(chosen), 5)
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(2.5 * columns, 2.7 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis, (window, index) in zip(axes, chosen, strict=False):
        fit, score = fits[window], fits[window].scores[index]
        shown = np.random.default_rng(0).permutation(len(fit.truth))[:points]
        truth, prediction = fit.truth[shown, index], fit.prediction[shown, index]
        limits = (float(truth.min()), float(truth.max()))
        axis.plot(limits, limits, color=_MUTED, linewidth=1)
        axis.scatter(truth, prediction, s=2, color=_ACCENT, alpha=0.4, linewidths=0)
        result = "does not vary" if np.isnan(score.r2) else f"$R^2$ = {score.r2:.3f}"
        axis.set_title(f"{score.target}\n{result}{', 3 latents' if window == 3 else ''}", fontsize=9)
        axis.set_xlabel("true", fontsize=8)
        axis.tick_params(labelsize=7)
    for axis in axes[len(chosen) :]:
        axis.set_visible(False)
    axes[0].set_ylabel("read from the latent", fontsize=8)
    return figure


def latent_map(latents: Sequence[EpisodeFeatures], states: dict[int, np.ndarray], dataset: Dataset) -> Figure:
    """The latents' first two principal components, once for every target, coloured by it."""
    z_ND = np.concatenate([sequence.features for sequence in latents]).astype(np.float64)
    y = np.concatenate([states[sequence.episode][sequence.time] for sequence in latents])
    names, values = targets(dataset.columns, y)
    centred = z_ND - z_ND.mean(axis=0)
    eigenvalues, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    plane = centred @ vectors[:, [-1, -2]]
    share = eigenvalues[[-1, -2]].sum() / eigenvalues.sum()
    count = len(names)
    columns = min(count, 5)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.6 * columns, 2.7 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis, (name, _), value in zip(axes, names, values.T, strict=False):
        low, high = np.percentile(value, [2, 98])
        points = axis.scatter(*plane.T, c=value, s=2, cmap="viridis", vmin=low, vmax=high, linewidths=0)
        axis.set_title(name, fontsize=9)
        axis.set(xticks=[], yticks=[])
        figure.colorbar(points, ax=axis, shrink=0.7).ax.tick_params(labelsize=6)
    for axis in axes[count:]:
        axis.set_visible(False)
    figure.suptitle(f"Held-out latents on their first two principal components ({share:.0%} of variance)", fontsize=10)
    return figure


@torch.no_grad()
def rollout_strip(model: LeWM, dataset: Dataset, episode: int, gallery: np.ndarray, blocks: int = 8) -> Figure:
    """A real episode above, and below it, for every imagined latent, the nearest real frame of other episodes.

    The rollout starts from one encoded observation and sees only actions from then on.
    """
    config, device = model.config, model.pixel_mean.device
    recorded = dataset.read_episode(episode)
    first = (config.stack - 1) * config.stack_stride
    blocks = min(blocks, (len(recorded) - first) // config.frame_skip)
    times = first + config.frame_skip * np.arange(blocks + 1)
    real = torch.from_numpy(observations(recorded.frames, times, config)).to(device)
    action = recorded.action[first : first + blocks * config.frame_skip].reshape(1, blocks, -1)
    z_BD = model.encode(real[:1])
    imagined_HD = model.rollout(z_BD, torch.tensor(action, device=device))[0]

    nearest = np.zeros((blocks, dataset.size, dataset.size, 3), np.uint8)
    best = torch.full((blocks,), float("inf"), device=device)
    for other in gallery:
        if other == episode:
            continue
        frames = dataset.read_episode(int(other)).frames
        other_times = np.arange(first, len(frames), 2)
        z_ND = model.encode(torch.from_numpy(observations(frames, other_times, config)).to(device))
        distance, index = torch.cdist(imagined_HD, z_ND).min(dim=1)
        for block in torch.nonzero(distance < best).flatten().tolist():
            nearest[block] = frames[other_times[int(index[block])]]
        best = torch.minimum(best, distance)

    top = [recorded.frames[time] for time in times]
    figure = Figure(figsize=(1.25 * (blocks + 1), 2.9), layout="constrained")
    axes = figure.subplots(2, blocks + 1)
    for column in range(blocks + 1):
        axes[0, column].imshow(top[column])
        axes[0, column].set_title(f"+{column * config.frame_skip * recorded.info.dt:.2f} s", fontsize=8)
        axes[1, column].imshow(nearest[column - 1] if column else top[0])
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    axes[0, 0].set_ylabel("real", fontsize=9)
    axes[1, 0].set_ylabel("imagined:\nnearest frame", fontsize=9)
    return figure


def planning_strip(frames: np.ndarray) -> Figure:
    """Start, where planning ended, and goal, one column a goal. `frames` is (goals, 3, h, w, 3)."""
    goals = min(len(frames), 16)
    figure = Figure(figsize=(0.95 * goals + 0.6, 3.2), layout="constrained")
    axes = figure.subplots(3, goals, squeeze=False)
    for column in range(goals):
        for row in range(3):
            axes[row, column].imshow(frames[column, row])
            axes[row, column].set(xticks=[], yticks=[])
    for row, name in enumerate(("start", "planned", "goal")):
        axes[row, 0].set_ylabel(name, fontsize=9)
    return figure


def episode_strip(frames: np.ndarray, count: int = 16) -> Figure:
    """Evenly spaced frames of an episode (T+1, h, w, 3), two rows."""
    chosen = np.linspace(0, len(frames) - 1, count).astype(int)
    figure = Figure(figsize=(1.1 * count / 2, 2.6), layout="constrained")
    for axis, step in zip(figure.subplots(2, count // 2).ravel(), chosen, strict=True):
        axis.imshow(frames[step])
        axis.set_title(str(step), fontsize=8)
        axis.axis("off")
    return figure
