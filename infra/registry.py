"""The model registry: versions of `lewm-<task>`, without pickles, and the alias `champion`.

A version is a torch.export program with a dynamic batch, loadable with plain `mlflow.pytorch.load_model` where this
project is not installed, with the weights as safetensors and the configuration beside it. `champion` moves to a version
only if it is better on validation than the present one, with the same dataset; the first version gets it.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from infra.tracking import MlflowTracker

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

CHAMPION = "champion"
SCORE = "val/probe/linear/w3/r2_mean"
"""The metric that promotion compares: mean R2 over observable columns, three latents, validation episodes."""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a registered model. `score` is None before the run was probed."""

    name: str
    version: str
    aliases: tuple[str, ...]
    run: str
    run_id: str
    dataset_digest: str
    preset: str
    score: float | None


@dataclass(frozen=True, slots=True)
class Promotion:
    """Whether the alias moved, and why."""

    name: str
    version: str
    moved: bool
    reason: str


def register(
    tracker: MlflowTracker,
    *,
    name: str,
    module: nn.Module,
    inputs: tuple[np.ndarray, ...],
    files: Sequence[Path],
    tags: Mapping[str, str],
) -> str:
    """Log `module` to the tracker's run and register it as a new version of `name`; the version's number.

    `inputs` are example inputs whose first dimension (at least 2) is the batch.
    """
    import mlflow
    import torch
    from mlflow.pytorch import log_model

    mlflow.set_tracking_uri(tracker.tracking_uri)
    with torch.no_grad():
        outputs = module(*(torch.from_numpy(array) for array in inputs))
    signature = _signature(inputs, [output.numpy() for output in outputs])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mlflow and torch.export warn about each other's deprecations
        mlflow.start_run(run_id=tracker.run_id)
        try:
            info = log_model(
                module,
                name="model",
                signature=signature,
                input_example=inputs,  # pyright: ignore[reportArgumentType]
                registered_model_name=name,
                serialization_format="pt2",
                extra_files=[str(path) for path in files],
                pip_requirements=[f"torch=={torch.__version__.split('+')[0]}", f"numpy=={np.__version__}"],
            )
        finally:
            mlflow.end_run()
    version = str(info.registered_model_version)
    for key, value in tags.items():
        tracker.client.set_model_version_tag(name, version, key, value)
    return version


def promote(name: str, version: str, tracking_uri: str, *, force: bool = False) -> Promotion:
    """Move `champion` to `version` if the rule allows it, or in any case with `force`."""
    client = _client(tracking_uri)
    candidate = describe(name, version, tracking_uri)
    champion = next((each for each in versions(name, tracking_uri) if CHAMPION in each.aliases), None)
    moved, reason = _judge(candidate, champion, force)
    if moved:
        client.set_registered_model_alias(name, CHAMPION, version)
    return Promotion(name, version, moved, reason)


def versions(name: str, tracking_uri: str) -> list[ModelVersion]:
    """All versions of a model, oldest first."""
    client = _client(tracking_uri)
    found = client.search_model_versions(f"name = '{name}'")
    return sorted((_version(client, each) for each in found), key=lambda each: int(each.version))


def model_names(tracking_uri: str) -> list[str]:
    """Names of all registered models."""
    return [model.name for model in _client(tracking_uri).search_registered_models()]


def describe(name: str, version: str, tracking_uri: str) -> ModelVersion:
    """One version by number or alias; ValueError when there is none."""
    from mlflow.exceptions import MlflowException

    client = _client(tracking_uri)
    try:
        if version.isdigit():
            return _version(client, client.get_model_version(name, version))
        alias = client.get_model_version_by_alias(name, version)
        return _version(client, client.get_model_version(name, alias.version))
    except MlflowException as error:
        names = ", ".join(model_names(tracking_uri)) or "none"
        raise ValueError(f"no model {name!r} with version or alias {version!r}; registered: {names}") from error


def run_name_of(uri: str, tracking_uri: str) -> str:
    """Name of the run that `models:/NAME@alias` or `models:/NAME/VERSION` came from."""
    name, separator, version = uri.removeprefix("models:/").replace("@", "/").partition("/")
    if not separator or not version:
        raise ValueError(f"{uri!r} is not a model: write models:/NAME@alias or models:/NAME/VERSION")
    return describe(name, version, tracking_uri).run


def _judge(candidate: ModelVersion, champion: ModelVersion | None, force: bool) -> tuple[bool, str]:
    if champion is None:
        return True, "the first version"
    if champion.version == candidate.version:
        return False, "it is the champion already"
    if force:
        return True, f"forced; the champion was version {champion.version}"
    if candidate.dataset_digest != champion.dataset_digest:
        return False, f"version {champion.version} was trained on another dataset; --force moves the alias"
    if candidate.score is None or champion.score is None:
        return False, "one of the two has not been probed"
    if candidate.score > champion.score:
        return True, f"{SCORE} {candidate.score:.4f} beats {champion.score:.4f} of version {champion.version}"
    return False, f"{SCORE} {candidate.score:.4f} does not beat {champion.score:.4f} of version {champion.version}"


def _version(client: Any, found: Any) -> ModelVersion:
    run = client.get_run(found.run_id)
    # A search result leaves the aliases out; the version itself has them.
    aliases = client.get_model_version(found.name, found.version).aliases
    return ModelVersion(
        name=found.name,
        version=str(found.version),
        aliases=tuple(aliases),
        run=run.info.run_name,
        run_id=found.run_id,
        dataset_digest=found.tags.get("dataset_digest", ""),
        preset=found.tags.get("preset", ""),
        score=run.data.metrics.get(SCORE),
    )


def _signature(inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def schema(names: Sequence[str], arrays: Sequence[np.ndarray]) -> Schema:
        return Schema(
            [TensorSpec(array.dtype, (-1, *array.shape[1:]), name) for name, array in zip(names, arrays, strict=True)]
        )

    return ModelSignature(schema(("frames", "action"), inputs), schema(("latent", "next_latent"), outputs))


def _client(tracking_uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri)
