"""Episodes as pictures: a contact sheet of frames above their reward and state curves, and a clip of them side by side.

State columns are drawn as deviations from their mean in standard deviations of the episode, because metres and radians
share no axis. Frames are enlarged by whole factors, without smoothing: what is drawn is what the model sees.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from shards.dataset import Dataset
from shards.episode import Episode

_DPI = 100
_MAX_CURVES = 8
_REWARD, _CURSOR = "#c2410c", (220, 38, 38)
_SIDE = 192
"""Least side of a frame in the clip, in pixels."""


def choose(dataset: Dataset, numbers: Sequence[int], count: int) -> list[int]:
    """The episodes to draw: those named, else `count` evenly spread; ValueError for one that is not there."""
    if odd := [number for number in numbers if not 0 <= number < len(dataset)]:
        raise ValueError(f"episode {odd[0]}: {dataset.path} has episodes 0 to {len(dataset) - 1}")
    if numbers:
        return list(numbers)
    if count < 1:
        raise ValueError(f"{count} episodes to draw; at least 1 is needed")
    return sorted({round(x) for x in np.linspace(0, len(dataset) - 1, min(count, len(dataset)))})


def contact_sheet(numbers: Sequence[int], episodes: Sequence[Episode], frames: int) -> Image.Image:
    """For each episode a strip of `frames` evenly spaced frames, and below it its curves over the same time axis."""
    if frames < 2:
        raise ValueError(f"{frames} frames an episode; at least 2 are needed")
    strips = []
    for number, episode in zip(numbers, episodes, strict=True):
        steps = np.linspace(0, len(episode), min(frames, len(episode) + 1)).round().astype(int)
        width = max(1200, len(steps) * 96)
        strips += [_title(number, episode, width), _strip(episode, steps, width), _curves(episode, width, 260)]
    return _stack(strips)


def save_clip(numbers: Sequence[int], episodes: Sequence[Episode], path: Path, seconds: float = 8.0) -> None:
    """Write the episodes side by side, each above its curves with a cursor at the present step. Animated GIF or WebP,
    by the path's suffix. A picture is shown for the time between its steps, but at least 40 ms, so that short steps
    play slower than they happened; and for less where all would take longer than about `seconds`."""
    longest = max(len(episode) for episode in episodes)
    stride = max(1, round(longest / (seconds * 25)))
    dt = float(episodes[0].info.dt)
    panels = [_Panel(number, episode) for number, episode in zip(numbers, episodes, strict=True)]
    pictures = [_row([panel.at(step) for panel in panels]) for step in range(0, longest + 1, stride)]
    duration = int(min(max(1000 * dt * stride, 40), 1000 * seconds / len(pictures) if len(pictures) > 25 else 200))
    rest, milliseconds = pictures[1:], max(duration, 20)
    if path.suffix == ".gif":
        pictures[0].save(path, save_all=True, append_images=rest, duration=milliseconds, loop=0, optimize=True)
    else:
        pictures[0].save(path, save_all=True, append_images=rest, duration=milliseconds, loop=0, lossless=True)


class _Panel:
    """An episode in the clip: the frame of a step above its curves."""

    def __init__(self, number: int, episode: Episode) -> None:
        self._episode = episode
        factor = -(-_SIDE // episode.info.size)
        self._side = factor * episode.info.size
        self._title = _title(number, episode, self._side, short=True)
        self._curves = _curves(episode, self._side, 150, small=True)

    def at(self, step: int) -> Image.Image:
        step = min(step, len(self._episode))
        frame = Image.fromarray(self._episode.frames[step]).resize((self._side, self._side), Image.Resampling.NEAREST)
        curves = self._curves.copy()
        x = round((self._side - 1) * step / len(self._episode))
        ImageDraw.Draw(curves).line([(x, 0), (x, curves.height)], fill=_CURSOR, width=2)
        return _stack([self._title, frame, curves])


def _title(number: int, episode: Episode, width: int, short: bool = False) -> Image.Image:
    text = f"episode {number}   {len(episode)} steps   return {episode.episode_return:.4g}"
    if short:
        text = f"#{number}  return {episode.episode_return:.4g}"
    else:
        text += f"   {episode.info.key}"
    figure = Figure((width / _DPI, 0.26), dpi=_DPI)
    figure.text(4 / width, 0.5, text, fontsize=9, va="center", family="DejaVu Sans")
    return _image(figure)


def _strip(episode: Episode, steps: np.ndarray, width: int) -> Image.Image:
    """Frames at `steps`, each with its step in the corner."""
    side = width // len(steps) - 4
    strip = Image.new("RGB", (width, side + 4), "white")
    for i, step in enumerate(steps.tolist()):
        frame = Image.fromarray(episode.frames[step]).resize((side, side), Image.Resampling.NEAREST)
        draw = ImageDraw.Draw(frame)
        draw.rectangle((0, 0, 8 + 7 * len(str(step)), 13), fill="black")
        draw.text((4, 1), str(step), fill="white")
        strip.paste(frame, (round(i * width / len(steps)) + 2, 2))
    return strip


def _curves(episode: Episode, width: int, height: int, small: bool = False) -> Image.Image:
    """Reward and standardised state over the steps."""
    figure = Figure((width / _DPI, height / _DPI), dpi=_DPI)
    reward, state = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    steps = np.arange(len(episode) + 1)
    reward.step(steps[1:], episode.reward, where="pre", color=_REWARD, linewidth=1)
    deviations = episode.state - episode.state.mean(axis=0)
    deviations /= np.maximum(deviations.std(axis=0), 1e-9)
    columns = episode.info.columns[:_MAX_CURVES]
    for i, column in enumerate(columns):
        unit = f" ({column.unit})" if column.unit else ""
        state.plot(steps, deviations[:, i], linewidth=1, label=f"{column.name}{unit}")
    if small:
        for axes in (reward, state):
            _bare(axes, len(episode))
        figure.subplots_adjust(0, 0, 1, 1, hspace=0.05)
        return _image(figure)
    reward.set_ylabel("reward", fontsize=8)
    state.set_ylabel("state, in std", fontsize=8)
    state.set_xlabel("step", fontsize=8)
    for axes in (reward, state):
        axes.tick_params(labelsize=7)
        axes.set_xlim(0, len(episode))
        axes.grid(alpha=0.3, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    if columns:
        more = len(episode.info.columns) - len(columns)
        title = f"and {more} more" if more else None
        state.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.5), frameon=False, title=title)
    figure.subplots_adjust(left=0.05, right=0.8, top=0.97, bottom=0.15, hspace=0.12)
    return _image(figure)


def _bare(axes: Axes, steps: int) -> None:
    axes.set_axis_off()
    axes.set_xlim(0, steps)


def _image(figure: Figure) -> Image.Image:
    data = BytesIO()
    figure.savefig(data, format="png", dpi=_DPI)
    return Image.open(data).convert("RGB")


def _stack(images: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)), "white")
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height
    return sheet


def _row(images: Sequence[Image.Image]) -> Image.Image:
    row = Image.new("RGB", (sum(image.width + 6 for image in images), max(image.height for image in images)), "white")
    left = 3
    for image in images:
        row.paste(image, (left, 0))
        left += image.width + 6
    return row
