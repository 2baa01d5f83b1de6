"""What `lewm train` makes of its command line."""

import json
import socket

import pytest

from infra.cli import main
from infra.cli.train import parse
from infra.retry import FINAL
from tests.helpers import make_dataset
from tests.trainers.helpers import tiny_config
from trainers.ray_train import TrainingDiverged, TrainingFailed
from trainers.rundir import Run, RunRecord


@pytest.fixture
def run(tmp_path) -> Run:
    dataset = make_dataset(tmp_path / "data", n=24, steps=20)
    config = tiny_config(tmp_path / "data", stop_step=7)
    record = RunRecord("one", "0", dataset.digest, dataset.environment, "0")
    return Run.create(tmp_path / "home/runs/one", config, record)


def test_resume_takes_the_configuration_of_the_run(run, tmp_path):
    by_name = parse("lewm train", ["--home", str(tmp_path / "home"), "--resume", "one"])
    by_path = parse("lewm train", ["--resume", str(run.path)])
    assert by_name.config == by_path.config == run.config
    changed = parse("lewm train", ["--resume", str(run.path), "--workers", "2..4", "--log-every", "3"])
    assert (changed.config.worker_range, changed.config.log_every) == ((2, 4), 3)


def test_resume_refuses_what_does_not_fit(run, tmp_path):
    with pytest.raises(ValueError, match="neither a run directory nor a run"):
        parse("lewm train", ["--home", str(tmp_path / "home"), "--resume", "two"])
    with pytest.raises(ValueError, match="not both"):
        parse("lewm train", ["--resume", str(run.path), "--from", str(run.path / "config.json")])


def test_a_preset_beside_a_whole_configuration_is_refused(run):
    for other in (["--from", str(run.path / "config.json")], ["--resume", str(run.path)]):
        with pytest.raises(ValueError, match=r"give --preset article or --(from|resume) .*, not both"):
            parse("lewm train", [*other, "--preset", "article"])


@pytest.mark.parametrize(("error", "code"), [(TrainingDiverged, 2), (TrainingFailed, 1)])
def test_a_job_does_not_try_again_what_would_diverge_again(error, code, run, monkeypatch, capsys):
    def train(*_, **__):
        raise error("Diverged: the loss is nan at step 9")

    monkeypatch.setattr("collectors.cluster.ensure_ray", lambda address: None)
    monkeypatch.setattr("infra.cluster.prepare_driver", lambda address: None)
    monkeypatch.setattr("infra.workflows.train", train)
    assert main(["train", "--resume", str(run.path)]) == code
    assert "run one: Diverged: the loss is nan at step 9" in capsys.readouterr().err
    assert (code in FINAL) == (error is TrainingDiverged)


@pytest.mark.parametrize("workers", ["0", "4..2", "two", "1..", "-1"])
def test_bad_numbers_of_workers_are_one_line(run, workers, capsys):
    assert main(["train", "--resume", str(run.path), f"--workers={workers}"]) == 2
    assert "worker" in capsys.readouterr().err


def test_an_address_where_nothing_listens_is_one_line(run, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        code = main(["train", "--resume", str(run.path), "--address", address, "--json"])
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert f"no Ray cluster answers at {address}" in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert json.loads((run.path / "run.json").read_text())["name"] == "one"
