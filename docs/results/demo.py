"""Turn reports of `lewm demo --json` into demo.csv: one row a seed and quantity, and their means over seeds.

for seed in 0 1 2; do lewm demo --seed $seed --json > demo-$seed.json; done
python docs/results/demo.py demo-0.json demo-1.json demo-2.json > docs/results/demo.csv
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def main(paths: list[str]) -> None:
    reports = [json.loads(Path(path).read_text()) for path in paths]
    rows = [row for report in reports for row in rows_of(report)]
    for target in dict.fromkeys(row["quantity"] for row in rows):
        same = [row for row in rows if row["quantity"] == target]
        mean = {key: sum(row[key] for row in same) / len(same) for key, value in same[0].items() if is_number(value)}
        rows.append(same[0] | mean | {"seed": "mean"})
    provenance = {"hardware": hardware(), "commit": commit()}
    writer = csv.DictWriter(sys.stdout, [*rows[0], *provenance], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {key: round(value, 4) if is_number(value) else value for key, value in row.items()} | provenance
        )


def rows_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a probed quantity; the run's other figures are repeated in each."""
    probe, plan = report["probe"], report["planning"]
    linear = [each for each in probe["results"] if each["probe"] == "linear"]
    scores = {(each["source"], each["window"]): each["scores"] for each in linear}
    compared = zip(
        scores["lewm", 1], scores["lewm", 3], scores["random_encoder", 1], scores["pixel_pca", 1], strict=True
    )
    return [
        {
            "seed": report["seed"],
            "quantity": one["target"],
            "r2": one["r2"],
            "r2_low": one["low"],
            "r2_high": one["high"],
            "r2_three_latents": three["r2"],
            "r2_random_encoder": random["r2"],
            "r2_pixel_pca": pixels["r2"],
            "held_out_episodes": float(probe["n_held_out"]),
            "effective_rank": probe["effective_rank"],
            "goal_distance_start": plan["start_distance"],
            "goal_distance_random": plan["random_distance"],
            "goal_distance_planned": plan["planned_distance"],
            "frames_per_second_collected": report["collection"]["frames_per_second"],
            "training_steps": float(report["training_steps"]),
            "training_steps_per_second": report["training_steps_per_second"],
            "data_wait_share": report["data_wait_share"],
            "demo_seconds": report["seconds"],
        }
        for one, three, random, pixels in compared
    ]


def is_number(value: Any) -> bool:
    return isinstance(value, float)


def hardware() -> str:
    model = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{len(os.sched_getaffinity(0))} cores of {model[0] if model else 'an unnamed processor'}"


def commit() -> str:
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    main(sys.argv[1:])
