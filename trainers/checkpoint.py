"""Checkpoints: a directory a step, complete or ignored.

    checkpoints/step_000001000/   config.json, model.safetensors, optim.pt, state.json, COMPLETE

A checkpoint is written into a temporary directory, synced, marked COMPLETE and renamed into place, so a process killed
at any instant leaves whole checkpoints plus leftovers, which the next writer removes. `optim.pt` holds tensors and
plain containers only and is read with `weights_only=True`; nothing is unpickled.
"""

import io
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from shards.atomic import sync

_STEP = re.compile(r"step_(\d{9})")
_TMP = ".tmp"
BEST = "val/prediction_over_copy"
"""Lower is better. The prediction loss alone falls also when latents collapse."""


@dataclass(frozen=True, slots=True)
class TrainState:
    """All that a run needs to go on: `model` and `optimizer` state dicts and JSON-able `state`.

    `state["metrics"]`, where it is there, holds what was measured at this very step.
    """

    step: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    state: Mapping[str, Any]

    def on_host(self) -> "TrainState":
        """A copy in host memory that training does not touch any more."""
        return TrainState(self.step, _copied(self.model), _copied(self.optimizer), dict(self.state))


class CheckpointSink(Protocol):
    """Where a training loop leaves its checkpoints and looks for the last one."""

    def latest(self) -> Path | None:
        """Directory of the newest complete checkpoint."""
        ...

    def save(self, checkpoint: TrainState, config: str) -> Path:
        """Write a checkpoint. Called on rank 0 alone. OSError where storage fails, which may pass."""
        ...


class LocalSink:
    """Checkpoints in `run/checkpoints` of a file system that every rank sees.

    The newest `keep` stay, and beside them the one that is best by `BEST` among those whose step was validated.
    """

    def __init__(self, run: Path, keep: int) -> None:
        self.directory = run / "checkpoints"
        self.keep = keep

    def latest(self) -> Path | None:
        complete = complete_checkpoints(self.directory)
        return complete[-1] if complete else None

    def save(self, checkpoint: TrainState, config: str) -> Path:
        self.directory.mkdir(parents=True, exist_ok=True)
        for leftover in self.directory.glob(f"*{_TMP}"):
            shutil.rmtree(leftover)
        target = self.directory / f"step_{checkpoint.step:09d}"
        temporary = target.with_name(target.name + _TMP)
        temporary.mkdir()
        (temporary / "config.json").write_text(config)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.model.items()}
        # Serialised in memory: their own writers call a full disk a SafetensorError and a RuntimeError.
        (temporary / "model.safetensors").write_bytes(save(tensors))
        optimizer = io.BytesIO()
        torch.save(dict(checkpoint.optimizer), optimizer)
        (temporary / "optim.pt").write_bytes(optimizer.getbuffer())
        state = {"step": checkpoint.step, **checkpoint.state}
        (temporary / "state.json").write_text(json.dumps(state, sort_keys=True, indent=2) + "\n")
        (temporary / "COMPLETE").touch()
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        if target.exists():
            _remove(target)
        temporary.rename(target)
        sync(self.directory)
        complete = complete_checkpoints(self.directory)
        best = best_checkpoint(complete)
        for old in complete[: -self.keep]:
            if old != best:
                _remove(old)
        return target


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint in a way that, killed half-way, leaves none that looks complete."""
    leftover = checkpoint.with_name(f"{checkpoint.name}.old{_TMP}")
    checkpoint.rename(leftover)
    shutil.rmtree(leftover)


def complete_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints below `directory`, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _STEP.fullmatch(path.name) and (path / "COMPLETE").exists())


def best_checkpoint(checkpoints: Sequence[Path]) -> Path | None:
    """The checkpoint with the lowest `BEST`; None where none was validated at its step."""
    values: dict[Path, float] = {}
    for path in checkpoints:
        value = json.loads((path / "state.json").read_text()).get("metrics", {}).get(BEST)
        if value is not None and math.isfinite(value):
            values[path] = value
    return min(values, key=lambda path: values[path]) if values else None


def load_checkpoint(path: Path) -> TrainState:
    """Read a checkpoint directory. A directory without COMPLETE is a ValueError."""
    if not (path / "COMPLETE").exists():
        raise ValueError(f"{path} is not a complete checkpoint")
    state = json.loads((path / "state.json").read_text())
    return TrainState(
        step=state.pop("step"),
        model=load_file(path / "model.safetensors"),
        optimizer=torch.load(path / "optim.pt", weights_only=True, map_location="cpu"),
        state=state,
    )


def load_model_weights(model: nn.Module, path: Path) -> None:
    """Fill `model` from `path/model.safetensors`, strictly."""
    model.load_state_dict(load_file(path / "model.safetensors"))


def _copied(value: Any) -> Any:
    """Containers as they are, with every tensor copied to the host."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value
