"""Figures of surprise: scores over time with the event marked, the AUROC of everything, and a clip with the score
under the frames."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from trainers.evaluation.surprise import Curves, SurpriseReport, SurpriseScorecard
from trainers.evaluation.surprise_scores import SCORES, Score

_ACCENT, _MUTED, _EVENT = "#2a6f97", "#9aa5b1", "#e07a5f"
_CLIP_WIDTH, _PLOT_HEIGHT, _MARGIN, _CAPTION = 480, 120, 8, 22


def score_curves(report: SurpriseReport, labels: Sequence[str], score: Score) -> Figure:
    """One score around the event, a panel an event: median and 10 to 90 % of rollouts with it, and of clean ones."""
    columns = min(len(labels), 4)
    rows = -(-len(labels) // columns)
    figure = Figure(figsize=(3.1 * columns, 2.4 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, sharex=True)).ravel()
    before = report.scorecard.before
    for axis, label in zip(axes, labels, strict=False):
        curves: tuple[tuple[Curves, str, str], ...] = (
            (report.clean, _MUTED, "without"),
            (report.events[label], _ACCENT, "with the event"),
        )
        for each, colour, name in curves:
            low, middle, high = np.percentile(each.scores[score], [10, 50, 90], axis=0)
            time = np.arange(len(middle)) - before
            axis.fill_between(time, low, high, color=colour, alpha=0.25, linewidth=0)
            axis.plot(time, middle, color=colour, linewidth=1.2, label=name)
        axis.axvline(0, color=_EVENT, linestyle="--", linewidth=1)
        axis.set_title(label, fontsize=9)
        axis.set_yscale("log")
        axis.tick_params(which="both", labelsize=6)
    for axis in axes[len(labels) :]:
        axis.set_visible(False)
    axes[0].legend(frameon=False, fontsize=7, loc="upper left")
    figure.supxlabel("frames from the event", fontsize=9)
    figure.supylabel(f"surprise: {score}", fontsize=9)
    return figure


def auroc_table(card: SurpriseScorecard) -> Figure:
    """AUROC of every event (rows) by every score (columns)."""
    labels = [each.label for each in card.records]
    values = np.array(
        [[card.of(each.event, each.size, score).auroc for score in SCORES] for each in card.records], dtype=float
    )
    figure = Figure(figsize=(1.05 * len(SCORES) + 1.8, 0.36 * len(labels) + 1.2), layout="constrained")
    axis = figure.subplots()
    axis.imshow(values, cmap="RdYlBu", vmin=0.0, vmax=1.0, aspect="auto")
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        axis.text(
            column,
            row,
            f"{value:.3f}",
            ha="center",
            va="center",
            fontsize=8,
            color="k" if 0.15 < value < 0.85 else "white",
        )
    axis.set_xticks(range(len(SCORES)), [score.replace("_", "\n") for score in SCORES], fontsize=8)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.xaxis.tick_top()
    axis.axvline(len(SCORES) - 3.5, color="k", linewidth=1)
    axis.set_title(
        f"AUROC, {card.n_episodes} held-out episodes ({card.episodes}); right of the line: baselines", fontsize=9
    )
    return figure


def write_clip(path: Path, report: SurpriseReport, label: str, score: Score = "prediction") -> Path:
    """A GIF of one rollout without and with an event side by side, and the score of both under them as they go."""
    card, event = report.scorecard, report.events[label]
    lead = len(event.frames) - event.scores[score].shape[1]
    scores = {_MUTED: report.clean.scores[score][0], _ACCENT: event.scores[score][0]}
    finite = np.concatenate([values[np.isfinite(values)] for values in scores.values()])
    top = max(float(finite.max()), 1e-12)
    pictures = [
        _picture(report.clean.frames[lead + t], event.frames[lead + t], scores, t, top, card.before, label, score)
        for t in range(len(scores[_ACCENT]))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100, loop=0, optimize=True)
    return path


def _picture(
    clean: np.ndarray,
    event: np.ndarray,
    scores: dict[str, np.ndarray],
    now: int,
    top: float,
    begin: int,
    label: str,
    score: Score,
) -> Image.Image:
    side = (_CLIP_WIDTH - 3 * _MARGIN) // 2
    height = 2 * _CAPTION + side + _PLOT_HEIGHT + 2 * _MARGIN
    picture = Image.new("RGB", (_CLIP_WIDTH, height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for index, (name, frame) in enumerate((("without", clean), (label, event))):
        left = _MARGIN + index * (side + _MARGIN)
        picture.paste(Image.fromarray(frame).resize((side, side), Image.Resampling.NEAREST), (left, _CAPTION))
        colour = _EVENT if index and now >= begin else "black"
        draw.text((left, 3), name, fill=colour, font=font)
    upper = 2 * _CAPTION + side
    draw.text((_MARGIN, upper - _CAPTION + 4), f"surprise: {score}", fill="black", font=font)
    steps = len(next(iter(scores.values()))) - 1

    def point(t: int, value: float) -> tuple[float, float]:
        return _MARGIN + t / steps * (_CLIP_WIDTH - 2 * _MARGIN), upper + _PLOT_HEIGHT * (1 - value / top)

    draw.line([point(begin, 0.0), point(begin, top)], fill=_EVENT, width=1)
    draw.line([point(0, 0.0), point(steps, 0.0)], fill=_MUTED, width=1)
    for colour, values in scores.items():
        line = [point(t, float(values[t])) for t in range(now + 1) if np.isfinite(values[t])]
        if len(line) > 1:
            draw.line(line, fill=colour, width=2)
        if line and colour == _ACCENT:
            x, y = line[-1]
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
    # Without dithering most of a still background stays the same from picture to picture, which GIF needs to be small.
    return picture.quantize(96, dither=Image.Dither.NONE)
