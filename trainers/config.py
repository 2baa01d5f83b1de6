"""The typed configuration of a training run, its presets, and its way to JSON and back.

A run is `fit(config)`: the resolved configuration is saved as canonical JSON in the run directory, in every checkpoint
and in MLflow, and its sha256 is the run's config id. `lewm train --from run/config.json` repeats a run.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from models.lewm import LeWMConfig
from models.presets import preset
from pipelines.tiers import Tier

_WHERE = ("data", "workers", "device", "threads", "decode_threads", "prefetch", "tier", "compile")
_WHEN = ("log_every", "validate_every", "checkpoint_every", "keep_checkpoints")
FREE = frozenset((*_WHERE, *_WHEN))
"""Fields that a resumed run may change: they decide where and how fast, not what is computed. The dataset's digest and
the number of threads are checked where they matter."""
_WORKERS = re.compile(r"([1-9]\d*)(?:\.\.([1-9]\d*))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW with warm-up and a cosine, clipped by the global norm. Biases and norms are not decayed."""

    lr: float = 2e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 100
    schedule_steps: int | None = None
    """Length of the cosine; the stop step unless given. A longer schedule than the run keeps the rate high."""
    final_share: float = 0.02
    """Share of `lr` at the end of the schedule."""
    clip_norm: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Everything that decides what a training run computes."""

    preset: str = "tiny"
    """Name of the preset that this configuration started from."""
    data: str
    """Dataset directory."""
    model: LeWMConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    batch_size: int = 64
    """Windows in a global batch, over all ranks."""
    stop_step: int = 2500
    seed: int = 0
    workers: int | str = 1
    """Ranks of the Ray Train job; 2..4 takes what there is from 2 to 4, and goes on when workers come or go."""
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    """bfloat16 is of the forward pass, by autocast; losses, statistics and weights stay float32. float64 is of all."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile the model; auto does on CUDA."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    """Torch threads a rank; 0 divides the machine's cores among the ranks."""
    decode_threads: int = 2
    prefetch: int = 3
    """Batches filled ahead."""
    tier: Tier = "auto"
    """Where frames come from: stream (decoded when needed), memmap (a cache of decoded frames), gpu (resident on the
    device), or the best that fits. All give the same batches."""
    locality: int = 0
    """Shards whose windows are kept together, for data that is fetched by the shard; 0 shuffles over all."""
    log_every: int = 25
    validate_every: int = 500
    """Steps between validations; there is one with every checkpoint, too."""
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    """The newest so many are kept, and beside them the one with the lowest val/prediction_over_copy."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "stop_step", "prefetch", "decode_threads", "log_every", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.locality < 0:
            raise ValueError(f"locality must not be negative, not {self.locality}")
        if self.checkpoint_every < 1 or self.keep_checkpoints < 1:
            raise ValueError("checkpoint_every and keep_checkpoints must be at least 1")
        fewest, most = self.worker_range
        if fewest > most:
            raise ValueError(f"workers {self.workers}: the first number is the smaller one")
        if self.batch_size < most:
            raise ValueError(f"a global batch of {self.batch_size} windows cannot be shared by {most} workers")

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most ranks."""
        found = _WORKERS.fullmatch(str(self.workers))
        if found is None:
            raise ValueError(f"workers must be a number from 1 on, or a range such as 2..4, not {self.workers!r}")
        return int(found[1]), int(found[2] or found[1])


def train_preset(name: str, data: str | Path) -> TrainConfig:
    """The training configuration that goes with a model preset."""
    base = TrainConfig(preset=name, data=str(data), model=preset(name))
    if name == "article":
        optim = OptimConfig(lr=3e-4, warmup_steps=5_000)
        return replace(
            base, batch_size=256, stop_step=500_000, checkpoint_every=10_000, optim=optim, precision="bfloat16"
        )
    if base.model.encoder.kind == "vit":
        # The authors scheduled 100 epochs and stopped after 10 (139,000 steps of Push-T): the rate hardly decays.
        optim = OptimConfig(lr=5e-5, weight_decay=1e-3, warmup_steps=13_900, schedule_steps=1_390_000, final_share=0.0)
        return replace(
            base, batch_size=128, stop_step=139_000, checkpoint_every=5_000, optim=optim, precision="bfloat16"
        )
    return base


def config_json(config: Any) -> str:
    """Canonical JSON of a configuration dataclass: sorted keys, two spaces, a newline at the end."""
    return json.dumps(asdict(config), sort_keys=True, indent=2) + "\n"


def config_id(config: Any) -> str:
    """sha256 of the canonical JSON, in hex."""
    return hashlib.sha256(config_json(config).encode()).hexdigest()


def load_train_config(path: Path) -> TrainConfig:
    """Read what `config_json` wrote. A missing, unknown or ill-typed field is a ValueError that names it."""
    try:
        values = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    return parse_train_config(values, source=str(path))


def parse_train_config(values: Any, *, source: str) -> TrainConfig:
    """A `TrainConfig` from decoded JSON; `source` names it in errors."""
    try:
        config = TypeAdapter(TrainConfig).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ValueError(f"{source} is not a training configuration: {where}: {first['msg']}") from error
    unknown = _unknown_fields(values, asdict(config))
    if unknown:
        raise ValueError(f"{source} has unknown fields: {', '.join(unknown)}")
    return config


def check_resumable(before: TrainConfig, now: TrainConfig, what: str) -> None:
    """ValueError, which shows the difference, where `now` would compute something else than `what` has so far.

    The stop step may change where the schedule has a length of its own.
    """
    free = FREE | ({"stop_step"} if now.optim.schedule_steps is not None else set())
    old, new = flatten(asdict(before)), flatten(asdict(now))
    differing = [name for name in sorted(new) if name not in free and old[name] != new[name]]
    if changed := [f"{name} was {old[name]!r}, is {new[name]!r}" for name in differing]:
        raise ValueError(f"{what} has another configuration: {'; '.join(changed)}")


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries to one level, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _unknown_fields(given: dict[str, Any], known: dict[str, Any]) -> list[str]:
    return sorted(flatten(given).keys() - flatten(known).keys())
