"""The model registry: versions of `lewm-<task>`, without pickles, and the alias `champion`.

A version is a torch.export program with a dynamic batch, loadable with plain `mlflow.pytorch.load_model` where this
project is not installed, with the weights as safetensors, the configuration and a model card beside it. A version's
score is that of the checkpoint that it was made from, as a tag of the version: its run may go on and be probed again.
`champion` moves to a version only if it is better on validation than the present one, with the same dataset; the first
version gets it.
"""

import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from infra.tracking import MlflowTracker, check_answers

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

CHAMPION = "champion"
SCORE = "val/probe/linear/w3/r2_mean"
"""The metric that promotion compares: mean R2 over observable columns, three latents, validation episodes. It is also
the name of the version's tag with its value."""
CARD = "MODEL_CARD.md"


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a registered model: the checkpoint of `run` at `step`. `score` is None before it was probed."""

    name: str
    version: str
    aliases: tuple[str, ...]
    run: str
    run_id: str
    dataset_digest: str
    preset: str
    step: int
    score: float | None
    card: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a version does with its own example: shapes and types by name."""

    uri: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    parameters: int


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
    step: int = 0,
    score: float | None = None,
    card: str = "",
) -> str:
    """Log `module` to the tracker's run and register it as a new version of `name`; the version's number.

    `inputs` are example inputs whose first dimension (at least 2) is the batch. `step` and `score` are those of the
    checkpoint; `card` is Markdown.
    """
    import mlflow
    import torch
    from mlflow.pytorch import log_model

    with torch.no_grad():
        outputs = module(*(torch.from_numpy(array) for array in inputs))
    signature = _signature(inputs, [output.numpy() for output in outputs])
    status = tracker.client.get_run(tracker.run_id).info.status
    with _fluent(tracker.tracking_uri), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mlflow and torch.export warn about each other's deprecations
        mlflow.start_run(run_id=tracker.run_id)
        try:
            with tempfile.TemporaryDirectory() as place:
                page = Path(place) / CARD
                page.write_text(card)
                info = log_model(
                    module,
                    name="model",
                    signature=signature,
                    input_example=inputs,  # pyright: ignore[reportArgumentType]
                    registered_model_name=name,
                    serialization_format="pt2",
                    extra_files=[str(path) for path in (*files, page)],
                    pip_requirements=[f"torch=={torch.__version__.split('+')[0]}", f"numpy=={np.__version__}"],
                    step=step,
                )
        finally:
            mlflow.end_run(status)
    version = str(info.registered_model_version)
    for key, value in {**tags, "step": str(step)}.items():
        tracker.client.set_model_version_tag(name, version, key, value)
    tracker.client.update_model_version(name, version, description=card)
    if score is not None:
        set_score(name, version, tracker.tracking_uri, score)
    return version


@contextmanager
def _fluent(tracking_uri: str) -> Iterator[None]:
    """MLflow's own functions work on this store, and then no more: what they are told, they tell the environment."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(tracking_uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # pyright: ignore[reportArgumentType]
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def set_score(name: str, version: str, tracking_uri: str, score: float, card: str | None = None) -> None:
    """Record what a version reached, and the card that says so. A score that is not finite is none."""
    client = _client(tracking_uri)
    if math.isfinite(score):
        client.set_model_version_tag(name, version, SCORE, repr(score))
    if card is not None:
        client.update_model_version(name, version, description=card)


def made_from(run_id: str, step: int, tracking_uri: str) -> list[ModelVersion]:
    """The versions that were made from a run's checkpoint at `step`."""
    client = _client(tracking_uri)
    found = [_version(client, each) for each in client.search_model_versions(f"run_id = '{run_id}'")]
    return [each for each in found if each.step == step]


def load(name: str, version: str, tracking_uri: str, to: Path | None = None) -> Loaded:
    """Load a version as anybody would, with plain MLflow, and run it on its own example.

    With `to`, its files are put there first, and loaded from there. ValueError where `to` exists.
    """
    import torch
    from mlflow.artifacts import download_artifacts
    from mlflow.models import Model
    from mlflow.pytorch import load_model

    found = describe(name, version, tracking_uri)
    uri = f"models:/{name}/{found.version}"
    if to is not None and to.exists():
        raise ValueError(f"{to} exists already: choose another --to")
    with _fluent(tracking_uri), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mlflow and torch.export warn about each other's deprecations
        if to is not None:
            to.parent.mkdir(parents=True, exist_ok=True)
            uri = str(download_artifacts(uri, dst_path=str(to)))
        model = load_model(uri)
        signature = Model.load(uri).signature
    sizes = [(spec.name, spec.type, (2, *spec.shape[1:])) for spec in signature.inputs.inputs]
    with torch.no_grad():
        outputs = model(*(torch.from_numpy(np.zeros(shape, kind)) for _, kind, shape in sizes))
    names = [spec.name for spec in signature.outputs.inputs]
    return Loaded(
        uri=uri,
        inputs={key: f"(B, {', '.join(map(str, shape[1:]))}) {kind}" for key, kind, shape in sizes},
        outputs={
            key: f"(B, {', '.join(map(str, value.shape[1:]))}) {str(value.dtype).removeprefix('torch.')}"
            for key, value in zip(names, outputs, strict=True)
        },
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def promote(name: str, version: str, tracking_uri: str, *, force: bool = False) -> Promotion:
    """Move `champion` to `version` if the rule allows it, or in any case with `force`."""
    client = _client(tracking_uri)
    candidate = describe(name, version, tracking_uri)
    champion = next((each for each in versions(name, tracking_uri) if CHAMPION in each.aliases), None)
    moved, reason = _judge(candidate, champion, force)
    if moved:
        client.set_registered_model_alias(name, CHAMPION, candidate.version)
    return Promotion(name, candidate.version, moved, reason)


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
        step=int(found.tags.get("step", 0)),
        score=float(found.tags[SCORE]) if SCORE in found.tags else None,
        card=found.description or "",
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

    check_answers(tracking_uri)
    return MlflowClient(tracking_uri)
