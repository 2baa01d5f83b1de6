"""Starting an epoch over very many episodes costs memory by the episode, and little."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infra.bench.synthetic import write_index


@pytest.mark.parametrize("locality", [0, 16])
def test_starting_an_epoch_over_a_million_episodes_takes_little_memory(tmp_path, locality):
    steps = 1003  # a billion windows
    write_index(tmp_path, 1_000_000, steps)
    command = [sys.executable, "-m", "infra.bench.synthetic", str(tmp_path), str(locality)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=300)
    figures = json.loads(done.stdout)
    assert figures["episodes"] == 1_000_000
    assert figures["windows"] == 1_000_000 * (steps - 2)
    assert figures["windows"] >= 10**9
    assert figures["anon_bytes"] < 500 << 20
