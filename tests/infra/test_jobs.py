"""Commands as jobs: what is sent, what is refused, and what a person sees of them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra import jobs, retry
from infra.cli import main
from infra.cli.submit import check_words, parse
from infra.jobs import prepare, run_name, stage, writes_to
from infra.ports import LOOPBACK, any_free
from tests.infra.cluster_helpers import LEWM, ROOT, lewm, place, start_head

TRAIN = ["--preset", "tiny", "--data", "/shared/data/walker", "--home", "/shared/home"]


def test_a_run_name_is_a_function_of_the_command():
    first = prepare("train", TRAIN)
    assert first == prepare("train", TRAIN)
    assert run_name("train", first).startswith("walker-tiny-")
    assert run_name("train", first) == run_name("train", prepare("train", first))
    assert run_name("train", prepare("train", [*TRAIN, "--seed", "1"])) != run_name("train", first)
    assert run_name("train", prepare("train", [*TRAIN, "--name", "mine"])) == "mine"
    assert run_name("train", ["--resume", "/shared/home/runs/mine"]) == "mine"
    swapped = [prepare("train", [*TRAIN, "--seed", a, "--workers", b]) for a, b in (("1", "2"), ("2", "1"))]
    assert run_name("train", swapped[0]) != run_name("train", swapped[1])
    collect = ["--home", "/shared", "dmc/walker-walk", "--seed", "3"]
    assert run_name("collect", prepare("collect", collect)) == "walker-walk-3"
    assert run_name("collect", ["dmc/walker-walk", "--out=s3://bucket/walker"]) == "walker"


def test_two_jobs_may_not_write_to_one_place():
    """What counts is the place, however it is said, and nothing else."""

    def place_of(verb, *words):
        return writes_to(prepare(verb, words))

    assert place_of("train", *TRAIN, "--name", "x") == place_of("train", "--home=/shared/home/", "--resume", "x")
    assert place_of("train", *TRAIN, "--name", "x") == place_of("train", *TRAIN, "--resume", "/shared/home/runs/x/")
    assert place_of("train", *TRAIN, "--name", "x") != place_of("train", "--home", "/other", "--name", "x")
    walker = place_of("collect", "--home", "/shared/lewm", "dmc/walker-walk")
    assert walker == "/shared/lewm/data/walker-walk-0"
    assert walker == place_of("collect", "dmc/walker-walk", "--workers", "8", "--home", "/shared/lewm", "--seed=0")
    assert walker == place_of("collect", "dmc/walker-walk", "--home", "/h", "--out", "/shared/lewm/data/walker-walk-0/")
    assert walker != place_of("collect", "dmc/walker-walk", "--home", "/h")
    assert place_of("collect", "--list", "--home", "/h") == ""
    with pytest.raises(ValueError, match="give --out"):
        prepare("collect", ["--from", "/shared/collection.json", "--home", "/h"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data", "data/walker", "--home", "/h"], "--data data/walker is relative"),
        (["--data=~/walker", "--home", "/h"], "--data ~/walker is relative"),
        (["--data", "/d", "--home", "here"], "--home here is relative"),
        (["--data", "/d"], "give --home"),
        (["--data", "/d", "--home", "/h", "--address", "auto"], "--address belongs to lewm submit"),
        (["--resume", "home/runs/mine", "--home", "/h"], "--resume home/runs/mine is relative"),
    ],
)
def test_what_cannot_run_elsewhere_is_refused(monkeypatch, words, expected):
    monkeypatch.delenv("LEWM_HOME", raising=False)
    with pytest.raises(ValueError, match=expected):
        prepare("train", words)


def test_the_home_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("LEWM_HOME", "/shared/home")
    assert dict(jobs._values(prepare("train", ["--data", "s3://b/d"])))["--home"] == "/shared/home"
    monkeypatch.setenv("LEWM_HOME", "home")
    with pytest.raises(ValueError, match="give --home"):
        prepare("train", ["--data", "s3://b/d"])


def test_the_verbs_parser_sees_the_words_before_the_cluster_does():
    check_words("train", prepare("train", [*TRAIN, "--optim.lr", "1e-3"]))
    check_words("collect", ["dmc/walker-walk", "--home", "/h"])
    check_words("train", ["--from", "/only/on/the/cluster.json", "--home", "/h"])
    with pytest.raises(ValueError, match="no-such-option"):
        check_words("train", [*TRAIN, "--no-such-option", "3"])
    with pytest.raises(ValueError, match="policy"):
        check_words("collect", ["dmc/walker-walk", "--policy", "nobody"])


def test_options_of_submit_may_stand_anywhere():
    args = parse("lewm submit", ["train", "--address", "http://h:8265", *TRAIN, "--detach", "--job-retries", "7"])
    assert args.command == ("train", *TRAIN)
    assert (args.address, args.detach, args.job_retries, args.json) == ("http://h:8265", True, 7, False)
    for words in (["probe", "x"], ["--detach"], ["train", "--job-retries", "many"], ["train", "--job-retries=-1"]):
        with pytest.raises(ValueError, match=r"job is one of|job-retries"):
            parse("lewm submit", words)


def test_only_the_packages_travel(tmp_path):
    to = stage(tmp_path / "code")
    names = {str(path.relative_to(to)) for path in to.rglob("*") if path.is_file()}
    assert {"infra/__main__.py", "infra/retry.py", "trainers/loop.py"} <= names
    assert "collectors/experts/weights/walker-walk.safetensors" in names
    assert {name.rsplit(".", 1)[1] for name in names} == {"py", "safetensors"}
    assert {name.split("/")[0] for name in names} == set(jobs.PACKAGES)


def test_too_much_code_is_refused_with_the_largest_file(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "CODE_LIMIT", 1000)
    with pytest.raises(ValueError, match=r"above 0 MB: is .*\.(py|safetensors) part of it"):
        stage(tmp_path / "code")


def test_a_job_knows_its_code_version_and_no_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example/")
    found = jobs._variables()
    assert found["MLFLOW_TRACKING_URI"] == "https://mlflow.example/"
    assert len(found["LEWM_COMMIT"]) == 40
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////home/me/mlflow.db")
    with pytest.raises(ValueError, match="is of this machine"):
        jobs._variables()
    for store in ("https://me:secret@mlflow.example/", "postgresql://me:secret@database/mlflow"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
        with pytest.raises(ValueError, match="holds a password") as caught:
            jobs._variables()
        assert "secret" not in str(caught.value)


class Flaky:
    """The client of a dashboard behind a tunnel: each request is lost the first time."""

    def __init__(self, *, drops: int = 1) -> None:
        self.drops = drops
        self.lost = {"list": 0, "tail": 0, "logs": 0}
        self.submitted: list[str] = []

    def _lose(self, what: str) -> None:
        if self.lost[what] < self.drops:
            self.lost[what] += 1
            raise ConnectionResetError("reset")

    def submit_job(self, *, submission_id: str, **_: Any) -> str:
        self.submitted.append(submission_id)
        return submission_id

    def list_jobs(self) -> list[SimpleNamespace]:
        if self.submitted:
            self._lose("list")
        found = {"status": "SUCCEEDED", "metadata": {}, "entrypoint": "", "message": "", "start_time": 0, "end_time": 0}
        return [SimpleNamespace(submission_id=each, **found) for each in self.submitted]

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        yield "pri"
        self._lose("tail")

    def get_job_logs(self, job_id: str) -> str:
        self._lose("logs")
        return "printed"


def behind(client: Flaky) -> jobs.Jobs:
    found = object.__new__(jobs.Jobs)
    found.dashboard, found._client = "http://head:8265", cast(Any, client)
    return found


def test_following_outlives_a_connection_that_breaks(monkeypatch):
    monkeypatch.setattr(jobs, "_POLL_SECONDS", 0.0)
    client, shown = Flaky(), []
    client.submitted = ["one"]
    assert behind(client).follow("one", shown.append).status == "SUCCEEDED"
    assert ("".join(shown), client.lost) == ("printed", {"list": 1, "tail": 1, "logs": 1})
    monkeypatch.setattr(jobs, "_AGENT_SECONDS", 0.0)
    client = Flaky(drops=9)
    client.submitted = ["one"]
    with pytest.raises(ConnectionError, match=r"head:8265 answers no more: reset; `lewm jobs logs one`"):
        behind(client).follow("one", shown.append)


def test_a_connection_that_breaks_after_a_submission_loses_no_job(monkeypatch):
    monkeypatch.setattr(jobs, "_POLL_SECONDS", 0.0)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = Flaky()
    job = behind(client).submit("train", prepare("train", TRAIN), retries=0)
    assert ([job.id], client.lost["list"]) == (client.submitted, 1)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([0, 1, 2, 130, 137]), min_size=1, max_size=5), st.integers(0, 4))
def test_a_command_is_tried_again_only_where_that_may_help(tmp_path_factory, codes, times):
    count = tmp_path_factory.mktemp("retry") / "count"
    script = f"echo x >> {count}; set -- {' '.join(map(str, codes))}; shift $(($(wc -l < {count}) - 1)); exit ${{1:-0}}"
    code = retry.run(["sh", "-c", script], times, pauses=(0.0, 0.0))
    outcomes = [*codes, *[0] * 5][: times + 1]
    last = next((index for index, each in enumerate(outcomes) if each in retry.FINAL), len(outcomes) - 1)
    assert code == outcomes[last]
    assert len(count.read_text().splitlines()) == last + 1


def test_a_signal_ends_the_command_and_the_retries(tmp_path):
    script = "trap 'exit 1' TERM; echo started; while :; do sleep 0.05; done"
    process = subprocess.Popen(
        [sys.executable, "-m", "infra.retry", "5", "sh", "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 1
    process.stdout.close()


def test_an_address_that_does_not_answer_is_one_line_at_once(capsys):
    address = f"{LOOPBACK}:{any_free()}"
    assert main(["submit", "train", *TRAIN, "--address", address]) == 2
    captured = capsys.readouterr()
    assert f"no Ray dashboard answers at http://{address}" in captured.err
    assert captured.err.count("\n") == 1


@pytest.fixture(scope="module")
def head():
    with place():
        yield start_head(cpus=2)


def test_a_job_is_followed_to_its_end_and_listed(head, tmp_path):
    done = lewm("submit", "collect", "--list", "--home", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    assert (job["status"], job["command"]) == ("SUCCEEDED", f"lewm collect --list --home {tmp_path}")
    assert "dmc/walker-walk" in done.stderr
    (listed,) = json.loads(lewm("jobs", "ls", "--json").stdout)
    assert listed == job
    logs = lewm("jobs", "logs", job["id"])
    assert "dmc/walker-walk" in logs.stdout
    assert logs.stdout == lewm("jobs", "logs", job["id"], "--no-follow").stdout
    assert json.loads(lewm("jobs", "logs", job["id"], "--no-follow", "--json").stdout)["logs"] == logs.stdout
    assert lewm("jobs", "status", job["id"]).returncode == 0
    missing = lewm("jobs", "logs", "no-such-job")
    assert (missing.returncode, missing.stderr) == (
        2,
        f"lewm jobs: the cluster has no job no-such-job: there is {job['id']}\n",
    )


def test_ctrl_c_leaves_the_job_which_is_stopped_by_name(head, tmp_path):
    """A second submission is refused while the first works; a stopped one leaves a dataset that can go on."""
    words = ["collect", "dmc/cartpole-swingup", "--episodes", "2000", "--home", str(tmp_path), "--workers", "1"]
    follower = subprocess.Popen(
        [*LEWM, "submit", *words],
        cwd=ROOT,
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    )
    assert follower.stdout is not None
    for line in follower.stdout:
        if "collect:" in line:
            break
    follower.send_signal(signal.SIGINT)
    _, err = follower.communicate(timeout=60)
    assert follower.returncode == 130
    (job,) = [each["id"] for each in json.loads(lewm("jobs", "ls", "--json").stdout) if each["status"] == "RUNNING"]
    assert f"`lewm jobs stop {job}` ends it" in err
    assert err.endswith("lewm submit: interrupted\n")
    again = lewm("submit", *words)
    assert again.returncode == 2
    assert f"job {job} works on" in again.stderr
    stopped = lewm("jobs", "stop", job)
    assert (stopped.returncode, stopped.stdout) == (0, f"{job} is stopped\n")
    assert lewm("jobs", "status", job).returncode == 1
    assert "had ended already: stopped" in lewm("jobs", "stop", job).stdout
    assert (tmp_path / "data" / "cartpole-swingup-0" / "collection.json").exists()


def test_a_job_that_fails_says_so_and_bad_input_is_not_tried_again(head, tmp_path):
    done = lewm("submit", "train", "--data", str(tmp_path / "none"), "--home", str(tmp_path))
    assert done.returncode == 1
    assert "failed: Job entrypoint command failed with exit code 2" in done.stderr
    assert "attempt 2" not in done.stdout
