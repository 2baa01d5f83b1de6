"""Published LeWM weights as runs of ours, and runs as published weights: the files around `models.official`."""

import json
import pickle
from pathlib import Path
from typing import Literal

import torch

from models.lewm import LeWM
from models.official import export_config, export_weights, load_weights, read_config
from shards.dataset import Dataset
from trainers.checkpoint import LocalSink, TrainState
from trainers.config import TrainConfig, config_id, config_json
from trainers.rundir import Run, RunRecord


def import_run(path: Path, *, config: Path, weights: Path, frame_skip: int, data: str) -> Run:
    """A run directory at `path` with the published weights as the checkpoint of step 0.

    With `data` the action statistics are that dataset's. Raises ValueError when the files do not fit each other.
    """
    if path.exists():
        raise ValueError(f"{path} exists already: choose another --name")
    if frame_skip < 1:
        raise ValueError(f"--frame-skip must be at least 1, not {frame_skip}")
    try:
        values = json.loads(config.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{config} is not JSON: {error}") from error
    try:
        tensors = torch.load(weights, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{weights} is not a state dict of tensors alone") from error
    if not isinstance(tensors, dict) or not all(isinstance(each, torch.Tensor) for each in tensors.values()):
        raise ValueError(f"{weights} is not a state dict of tensors alone")
    model_config, action_size = read_config(values, tensors, frame_skip=frame_skip)
    model = LeWM(model_config, action_size)
    load_weights(model, tensors)
    digest = environment = ""
    if data:
        dataset = Dataset.open(data)
        if dataset.action_size != action_size:
            raise ValueError(f"{data} has {dataset.action_size}-d actions, the weights take {action_size}-d ones")
        statistics = dataset.manifest.statistics
        model.set_statistics(
            pixel_mean=model.pixel_mean,
            pixel_std=model.pixel_std,
            action_mean=torch.as_tensor(statistics.action_mean, dtype=torch.float32),
            action_std=torch.as_tensor(statistics.action_std, dtype=torch.float32),
        )
        digest, environment = dataset.manifest.digest, dataset.environment
    train = TrainConfig(preset="released", data=data, model=model_config)
    record = RunRecord(path.name, "", digest, environment, config_id(train))
    run = Run.create(path, train, record)
    state = TrainState(0, model.state_dict(), {}, {"threads": 0, "loader": {}})
    LocalSink(path, keep=1).save(state, config_json(train))
    return run


def export_run(run: Run, to: Path, *, transformers: Literal[4, 5]) -> None:
    """Write `to/weights.pt` and `to/config.json`, from the run's newest checkpoint."""
    model = run.load_model(torch.device("cpu"))
    weights, config = export_weights(model, transformers=transformers), export_config(model)
    to.mkdir(parents=True, exist_ok=True)
    torch.save(weights, to / "weights.pt")
    (to / "config.json").write_text(json.dumps(config, indent=2) + "\n")
