"""The model card of a registered version, in Markdown: data, preset, metrics, limits, and how to load it.

It is the version's description on the MLflow page, and `MODEL_CARD.md` among its files. Every number in it is read from
the run; what was not measured is said to be missing.
"""

import json
from collections.abc import Mapping

from shards.dataset import Dataset
from trainers.config import TrainConfig
from trainers.evaluation.scorecard import ProbeScorecard


def model_card(
    name: str,
    run: str,
    step: int,
    config: TrainConfig,
    dataset: Dataset,
    *,
    parameters: int,
    validation: Mapping[str, float],
    probe: ProbeScorecard | None,
) -> str:
    """The card of a version of `name`, made from the checkpoint of `run` at `step`.

    `validation` holds what was measured at that step on held-out episodes.
    """
    info, manifest, model = dataset.info(0), dataset.manifest, config.model
    splits = ", ".join(f"{count:,} {split}" for split, count in manifest.splits.items())
    shape = (model.stack, model.image_size, model.image_size, 3)
    data = [
        ("environment", f"`{dataset.environment}`, camera `{info.camera}`, {dataset.size} px, quality {info.quality}"),
        ("episodes", f"{manifest.n_episodes:,} ({splits}); {manifest.n_steps:,} decisions of {info.dt:g} s"),
        ("first episode's policy", f"`{json.dumps(dict(info.policy), sort_keys=True)}`"),
        ("simulator", ", ".join(f"{key} {value}" for key, value in sorted(info.versions.items())) or "not recorded"),
        ("digest", f"`{dataset.digest}`"),
    ]
    training = [
        ("preset", f"`{config.preset}`, {parameters / 1e6:.2f}M parameters, latents of {model.latent_dim}"),
        ("run", f"`{run}`, step {step:,} of {config.stop_step:,}, {config.batch_size} windows a step"),
        ("window", f"history {model.history}, {model.stack} stacked frames, {model.frame_skip} actions a block"),
        ("seed", str(config.seed)),
    ]
    return "\n".join(
        [
            f"# {name}",
            "",
            "A LeWorldModel: pixels to a latent, and a latent with actions to the next one.",
            "",
            "## Data",
            *_table(data),
            "## Training",
            *_table(training),
            "## Measured on held-out episodes",
            *_metrics(validation, probe),
            "## Limits",
            f"- It has seen `{dataset.environment}` from one camera, at {dataset.size} px, under the policies that "
            "recorded its data. Nothing is known of other cameras, looks, tasks or policies.",
            "- Velocities can only be read as far as the stacked frames show them; quantities declared hidden are "
            "not in the frames.",
            "- Latents have no meaning across versions: goals must be encoded with the version that plans.",
            "",
            "## Use",
            f"Raw inputs: frames `(B, {', '.join(map(str, shape))})` uint8, upright RGB, oldest first; actions "
            f"`(B, {model.frame_skip * dataset.action_size})` float32, unscaled. Scaling is part of the model.",
            "",
            "```python",
            f'model = mlflow.pytorch.load_model("models:/{name}@champion")',
            "latent, next_latent = model(frames, action)",
            "```",
            "",
        ]
    )


def _metrics(validation: Mapping[str, float], probe: ProbeScorecard | None) -> list[str]:
    rows = [(f"`{key}`", f"{value:.4g}") for key, value in sorted(validation.items())]
    if probe is not None:
        rows.append(("linear probes, mean R2 of observable quantities, 3 latents", f"{probe.r2_mean:.3f}"))
        rows.append(("the same on validation episodes, which decides `champion`", f"{probe.r2_mean_validation:.3f}"))
        for score in probe.scores("lewm", "linear", 3):
            interval = f"{score.r2:.3f} [{score.low:.3f}, {score.high:.3f}]"
            rows.append((f"R2 of {score.target}, 3 latents", interval if score.r2 == score.r2 else "does not vary"))
    lines = _table(rows) if rows else ["Nothing yet.", ""]
    return lines if probe is not None else [*lines, "Not probed for physical state: `lewm probe` does that.", ""]


def _table(rows: list[tuple[str, str]]) -> list[str]:
    return ["", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]
