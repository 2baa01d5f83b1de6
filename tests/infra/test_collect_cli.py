"""`lewm collect` as people use it: repeated from a file, with a flag changed, and interrupted."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest

from collectors.config import CollectConfig
from collectors.envs.base import EnvConfig, VariationConfig
from collectors.policies import ExpertConfig, MixtureConfig, NoiseConfig, RandomConfig
from infra.cli import main
from infra.cli.collect import _config, _interruptible, parse
from shards.dataset import Dataset
from shards.verify import verify

ROOT = Path(__file__).resolve().parents[2]
CONFIG = CollectConfig(
    env=EnvConfig(name="dmc/walker-walk", size=48, quality="full", variation=VariationConfig(colors=0.5)),
    policy=MixtureConfig(policies=(NoiseConfig(scale=0.3), ExpertConfig())),
    episodes=7,
    seed=3,
    steps=20,
    random_start=0.25,
    encoding="raw",
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "collection.json"
    path.write_text(json.dumps({"config": asdict(CONFIG), "skipped": {}}))
    return path


def config(*words: str) -> CollectConfig:
    return _config(parse("lewm collect", list(words)))


def test_a_file_is_repeated_but_for_what_is_given(file):
    assert config("--from", str(file)) == CONFIG
    changed = config(f"--from={file}", "--episodes", "9", "--seed", "4", "--quality", "fast", "--policy", "random")
    expected = asdict(CONFIG) | {"episodes": 9, "seed": 4, "policy": asdict(RandomConfig())}
    expected["env"]["quality"] = "fast"
    assert asdict(changed) == expected
    assert config("dmc/walker-run", "--from", str(file)).env.name == "dmc/walker-run"


def test_the_expert_gets_noise(tmp_path, file):
    assert config("dmc/walker-walk", "--policy", "expert", "--noise", "0.3").policy == ExpertConfig(noise=0.3)
    assert config("dmc/walker-walk").policy == RandomConfig()
    with pytest.raises(ValueError, match=r"--noise 0\.3 goes with --policy expert, not with random"):
        config("dmc/walker-walk", "--noise", "0.3")
    with pytest.raises(ValueError, match=r"goes with --policy expert, not with mixture"):
        config("--from", str(file), "--noise", "0.3")
    with pytest.raises(ValueError, match="noise must not be negative"):
        config("dmc/walker-walk", "--policy", "expert", "--noise", "-1")


def test_mistakes_about_the_file_are_one_line(capsys, tmp_path):
    for words, expected in (
        (["--from"], "--from: expected one argument"),
        (["--from", str(tmp_path / "none.json")], "none.json: No such file"),
    ):
        assert main(["collect", *words]) == 2
        err = capsys.readouterr().err
        assert expected in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_says_how_to_go_on(gl, tmp_path, number, code):
    out = tmp_path / "data"
    words = ["collect", "dmc/cartpole-swingup", "--episodes", "2000", "--size", "32", "--steps", "50", "--workers", "1"]
    with subprocess.Popen(
        [sys.executable, "-m", "infra", *words, "--out", str(out)],
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": "127.0.0.1:1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and these tests may be one.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    ) as command:
        assert command.stderr is not None
        line = command.stderr.readline()  # the first of progress, when something is committed
        assert line.startswith("collect: "), line + command.stderr.read()
        command.send_signal(number)
        _, err = command.communicate(timeout=120)
    assert command.returncode == code, err
    assert "stopping: what is complete is committed first" in err
    assert f"what is complete is in {out}; the same command goes on from there" in err
    assert 8 <= len(Dataset.open(out)) < 2000
    assert verify(out).ok
    assert not list(out.rglob("*.tmp"))


@pytest.fixture
def heeded():
    """Ctrl-C is obeyed, also where this suite is a shell's background job, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
def test_an_order_that_comes_twice_is_one(monkeypatch):
    monkeypatch.setattr("infra.cli.collect._SAME_SECONDS", 600)
    with _interruptible():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr("infra.cli.collect._SAME_SECONDS", 0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


COMMANDS = {
    "walker": ["dmc/walker-walk", "--episodes", "40", "--policy", "random", "--size", "64"],
    "pick-place": ["metaworld/pick-place-v3", "--episodes", "40", "--policy", "expert", "--size", "64"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_any_number_of_workers_gives_the_same_episodes(gl, tmp_path, name):
    """Whole episodes at the usual length, by the commands of the documentation: many minutes."""
    found = set()
    for workers in (1, 2, 3):
        out = tmp_path / str(workers)
        for words in (
            ["collect", *COMMANDS[name], "--workers", str(workers), "--seed", "0", "--out", str(out)],
            ["shards", "verify", str(out)],
        ):
            done = subprocess.run(
                [sys.executable, "-m", "infra", *words], cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr[-3000:]
        dataset = Dataset.open(out)
        assert len(dataset) == 40
        found.add(dataset.digest)  # sha256 of every key with its episode's sha256
    assert len(found) == 1
