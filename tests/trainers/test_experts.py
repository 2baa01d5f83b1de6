"""Training an expert: killed at any moment it goes on, and what it ships acts as torch says."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from collectors.locks import locked
from trainers.experts import Args, StateEnv, _check_same, _weights, save_actor, train

WORDS = ["--task", "dmc/pendulum-swingup", "--width", "16", "--batch-size", "16", "--learning-starts", "40"]
WORDS += [
    "--evaluate-every",
    "100",
    "--evaluation-episodes",
    "1",
    "--choice-episodes",
    "2",
    "--checkpoint-every",
    "50",
    "--decisions",
    "300",
]


def resumable(checkpoint, since):
    """Whether the checkpoint is newer than another file."""
    return checkpoint.exists() and checkpoint.stat().st_mtime_ns > since.stat().st_mtime_ns


@pytest.mark.usefixtures("gl")
def test_a_killed_training_goes_on_and_ships_its_actor(tmp_path):
    out = tmp_path / "expert"
    command = [sys.executable, "-m", "trainers.experts", "--out", str(out), *WORDS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while len(list(out.glob("log.csv"))) == 0 or not resumable(out / "checkpoint", since=out / "log.csv"):
            assert process.poll() is None, process.stdout and process.stdout.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    # What a kill between the two renames of a checkpoint leaves, and one in the midst of writing it.
    (out / "checkpoint").rename(out / "checkpoint.old")
    (out / "checkpoint.tmp").mkdir()
    (out / "checkpoint.tmp" / "model.zip").write_bytes(b"torn")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    going_on = re.search(r"going on after (\d+) decisions", result.stdout)
    assert going_on
    assert int(going_on[1]) >= 100
    assert "best return" in result.stdout
    assert not list(out.glob("checkpoint.*"))
    rows = list(csv.DictReader((out / "log.csv").read_text().splitlines()))
    assert [(row["decisions"], row["actor"]) for row in rows] == [
        (str(decisions), actor) for decisions in (100, 200, 300) for actor in ("last", "average")
    ]
    with safe_open(out / "actor.safetensors", "numpy") as file:
        about = file.metadata()
    assert about["task"] == "dmc/pendulum-swingup"
    assert float(about["validation_return"]) == max(float(row["return_mean"]) for row in rows)

    with locked(out), pytest.raises(ValueError, match="in use by another process"):
        train(Args(out=out, task="dmc/pendulum-swingup"))
    config = json.loads((out / "config.json").read_text())
    assert (config["task"], config["seed"]) == ("dmc/pendulum-swingup", 0)
    _check_same(out / "config.json", config)
    with pytest.raises(ValueError, match="another configuration"):
        _check_same(out / "config.json", {**config, "seed": 1})


@pytest.mark.usefixtures("gl")
def test_arrays_act_as_the_torch_actor(tmp_path):
    from sb3_contrib import TQC

    from collectors.experts.learned import MLPActor

    env = StateEnv("dmc/reacher-easy", 0)
    model = TQC("MlpPolicy", env, policy_kwargs={"net_arch": [24, 24]}, seed=0, buffer_size=10)
    args = replace(Args(out=Path(tmp_path)), task="dmc/reacher-easy")
    save_actor(args, _weights(model.actor), 0, 1.0)
    actor = MLPActor(load_file(tmp_path / "actor.safetensors"))
    for x in np.random.default_rng(0).normal(size=(20, len(env.env.observation()))).astype(np.float32):
        with torch.no_grad():
            expected, _ = model.predict(x, deterministic=True)
        np.testing.assert_allclose(actor(x), expected, atol=1e-5)
