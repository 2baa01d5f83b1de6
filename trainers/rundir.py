"""The run directory: `runs/<name>/` with config.json, run.json, checkpoints/, scorecards/ and figures/."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from models.lewm import LeWM, LeWMConfig
from pipelines.windows import WindowSpec
from shards.atomic import write_atomically
from trainers.checkpoint import complete_checkpoints, load_model_weights
from trainers.config import TrainConfig, config_json, load_train_config


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What run.json says: the run's name, its MLflow run and the dataset it was trained on."""

    name: str
    mlflow_run_id: str
    dataset_digest: str
    environment: str
    config_id: str


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory that exists."""

    path: Path

    @staticmethod
    def create(path: Path, config: TrainConfig, record: RunRecord) -> "Run":
        """Make the directory and write both files."""
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / "config.json", config_json(config).encode())
        write_atomically(path / "run.json", (json.dumps(asdict(record), indent=2) + "\n").encode())
        return Run(path)

    @staticmethod
    def open(path: Path) -> "Run":
        """A directory with a config.json and a run.json, or a ValueError that says what is missing."""
        for name in ("config.json", "run.json"):
            if not (path / name).is_file():
                raise ValueError(f"{path} is not a run directory: it has no {name}")
        return Run(path)

    @property
    def config(self) -> TrainConfig:
        return load_train_config(self.path / "config.json")

    @property
    def record(self) -> RunRecord:
        return RunRecord(**json.loads((self.path / "run.json").read_text()))

    def last_checkpoint(self) -> Path:
        """The newest complete checkpoint."""
        complete = complete_checkpoints(self.path / "checkpoints")
        if not complete:
            raise ValueError(f"{self.path} has no complete checkpoint: has its training reached the first one?")
        return complete[-1]

    def load_model(self, device: torch.device) -> LeWM:
        """The model of the newest checkpoint, in evaluation mode."""
        checkpoint = self.last_checkpoint()
        return load_model(load_train_config(checkpoint / "config.json").model, checkpoint, device)


def load_model(config: LeWMConfig, weights: Path, device: torch.device) -> LeWM:
    """A LeWM with the weights in `weights/model.safetensors`, whose buffers tell the action size."""
    with safe_open(weights / "model.safetensors", framework="pt") as file:
        action_size = file.get_slice("action_mean").get_shape()[0]
    model = LeWM(config, action_size)
    load_model_weights(model, weights)
    return model.to(device).eval()


def window_spec(config: LeWMConfig) -> WindowSpec:
    """The training window that a preset asks for."""
    return WindowSpec(
        history=config.history, frame_skip=config.frame_skip, stack=config.stack, stack_stride=config.stack_stride
    )
