"""How much of what a probe misses on the cart-pole was outside the picture: R2 on held-out frames where the cart is
within 1.5 m of the middle, beside all frames, and the share of the squared error that the other frames have.

The camera stands still and shows 1.66 m to either side; the rail is 1.8 m long to either side, and the pole 1 m.

python docs/results/in_view.py RUN_DIRECTORY [RUN_DIRECTORY...] > docs/results/in_view.csv
"""

import csv
import sys
from pathlib import Path

import numpy as np
import torch

from infra.bench.common import commit, hardware
from shards.dataset import Dataset
from trainers.evaluation.latents import encode_episodes, held_out, model_encoder
from trainers.evaluation.probes import ProbeData, linear_probe
from trainers.rundir import Run, load_model

NEAR = 1.5


def main(runs: list[str]) -> None:
    provenance = {"hardware": hardware(), "commit": commit()}
    writer = None
    for run in map(Run, map(Path, runs)):
        for row in rows_of(run):
            writer = writer or header([*row, *provenance])
            writer.writerow(row | provenance)


def header(names: list[str]) -> "csv.DictWriter[str]":
    writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    writer.writeheader()
    return writer


def rows_of(run: Run) -> list[dict[str, object]]:
    config, device = run.config, torch.device("cpu")
    dataset = Dataset.open(config.data)
    model = load_model(config.model, run.last_checkpoint(), device)
    encoders, test = {"lewm": model_encoder(model)}, held_out(dataset)[0]
    fit_on, score_on = (
        encode_episodes(dataset, part, config.model, encoders, stride=2)["lewm"]
        for part in (dataset.indices("train"), test)
    )
    states = {each.episode: dataset.state(each.episode) for each in (*fit_on, *score_on)}
    fit = linear_probe(ProbeData.of(fit_on, score_on, states, dataset.columns), bootstraps=1)
    position = np.concatenate([states[each.episode][each.time, 0] for each in score_on])
    near = np.abs(position) <= NEAR
    squared = (fit.prediction - fit.truth) ** 2
    rows = []
    for n, score in enumerate(fit.scores):
        truth = fit.truth[near, n]
        rows.append(
            {
                "run": run.path.name,
                "quantity": score.target,
                "r2": round(score.r2, 4),
                "r2_near": round(float(1 - squared[near, n].sum() / ((truth - truth.mean()) ** 2).sum()), 4),
                "share_of_frames_far": round(float(1 - near.mean()), 4),
                "share_of_error_far": round(float(squared[~near, n].sum() / squared[:, n].sum()), 4),
                "held_out_episodes": len(test),
            }
        )
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
