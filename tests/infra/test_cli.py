"""The command line: help everywhere, one clear line for every mistake, and a start that loads nothing heavy."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from infra import cli
from infra.cli import errors
from tests.helpers import make_dataset

HEAVY = ("torch", "ray", "mlflow", "mujoco", "matplotlib", "numpy", "pyarrow", "tyro", "rich")


@pytest.fixture(autouse=True)
def empty_home(monkeypatch, tmp_path):
    for name in ("LEWM_DEBUG", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LEWM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "cartpole-0", n=6, steps=4)


def lewm(capsys, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command line run in this process."""
    try:
        code = cli.main(list(words))
    except SystemExit as stop:  # tyro leaves this way after printing help
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def words_of_all_verbs() -> list[str]:
    found = []
    for verb in cli.HELP:
        found.append(verb)
        found += [f"{verb} {name}" for name in getattr(importlib.import_module(f"infra.cli.{verb}"), "VERBS", {})]
    return found


@pytest.mark.parametrize("words", words_of_all_verbs())
def test_every_verb_has_help(capsys, words):
    code, out, err = lewm(capsys, *words.split(), "--help")
    assert (code, err) == (0, "")
    assert f"usage: lewm {words}" in out
    if "VERB" not in out.splitlines()[0]:
        assert "--json" in out


def test_the_first_page_names_every_verb(capsys):
    code, out, err = lewm(capsys)
    assert (code, err) == (0, "")
    assert all(f"\n  {verb} " in out for verb in cli.HELP)
    assert {path.stem for path in Path(cli.__file__).parent.glob("*.py")} - {
        "__init__",
        "common",
        "errors",
        "signals",
    } == set(cli.HELP)


def test_starting_loads_nothing_heavy():
    code = f"import sys; from infra.cli import main; main(['--help']); print([m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


MISTAKES = [
    ("trian", "did you mean 'train'"),
    ("xyzzy", "unknown verb? `lewm --help`"),
    ("shards foo", "there is no 'foo': choose from ls, verify, preview, stats"),
    ("shards verify", "DIRECTORY"),
    ("shards verify /nope", "/nope is not a dataset"),
    ("shards ls /nope", "lewm collect"),
    ("shards stats /nope --json", "/nope is not a dataset"),
    ("models ls --json", "there is no MLflow store"),
    ("models show lewm-walker", "there is no MLflow store"),
    ("models promote lewm-walker 1", "there is no MLflow store"),
    ("ui", "there is no MLflow store"),
    ("probe nope --json", "'nope' is neither a run directory nor a run"),
    ("plan nope", "'nope' is neither a run directory nor a run"),
    ("plan nope --goals 0", "--goals must be at least 1, not 0"),
    ("plan nope --goals many", "--goals"),
    ("plan nope --planner icem --cem.samples 99", "--cem.* is given but --planner is icem"),
    ("plan nope --planner mppi --mppi.temperature 0", "temperature > 0"),
    ("probe models:/lewm-walker@champion", "there is no MLflow store"),
    ("probe", "RUN"),
    ("probe nope --device tpu", "--device"),
    ("presets --action-size 0", "--action-size must be at least 1, not 0"),
    ("presets --action-size x", "--action-size"),
    ("presets --bad", "--bad"),
    ("presets --action-siz 1", "did you mean --action-size?"),
    ("train", "--data"),
    ("train --data /nope --json", "/nope is not a dataset"),
    ("train --data /nope --preset huge", "'huge'"),
    ("train --preset", "--preset"),
    ("train --data /nope --optim.lr fast", "--optim.lr"),
    ("train --data /nope --batch-size 0", "batch_size must be at least 1, not 0"),
    ("train --from /nope.json", "/nope.json: No such file or directory"),
    ("collect", "lewm collect --list"),
    ("collect dmc/cartpol-swingup --json", "dmc/cartpole-swingup"),
    ("collect dmc/cartpole-swingup --episodes 0", "episodes must be at least 1, not 0"),
    ("collect dmc/cartpole-swingup --quality best", "--quality"),
    ("run", "TASK"),
    ("run dmc/walker-wlk --json", "there is no recipe for 'dmc/walker-wlk', did you mean dmc/walker-walk?"),
    ("run dmc/walker-walk --scale huge", "--scale"),
    ("bench lambda", "--data"),
    ("bench lambda --data /nope --weights 0.1 0.1", "--weights must be different numbers"),
    ("demo --episodes 0", "episodes must be at least 1, not 0"),
    ("demo --device tpu", "--device"),
    ("doctor --json --port 1", "--port"),
]


@pytest.mark.parametrize(("words", "expected"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_a_mistake_is_one_line(capsys, words, expected):
    code, out, err = lewm(capsys, *words.split())
    assert (code, out) == (2, "")
    assert expected in err
    assert err.startswith(f"lewm {words.split()[0]}: ")
    assert err.count("\n") == 1
    assert "unexpected" not in err


def test_a_configuration_of_no_use_is_named(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"preset": "tiny"}')
    code, out, err = lewm(capsys, "train", "--from", "config.json")
    assert (code, out) == (2, "")
    assert str(tmp_path / "config.json") in err
    assert err.count("\n") == 1


BOX = """
╭─ Value error ──────────────────╮
│ Error parsing --steps: invalid │
│ literal                        │
│ ────────────────────────────── │
│ For full helptext, see --help  │
╰────────────────────────────────╯
"""


@pytest.mark.parametrize(
    "box", [BOX, BOX.translate(str.maketrans("╭╮╰╯│─", "     -")).replace("- Value error -", "\n Value error\n")]
)
def test_the_error_box_becomes_a_line(box):
    assert errors.one_line(box) == "Error parsing --steps: invalid literal"


def test_an_empty_error_box_still_says_something():
    assert "--help" in errors.one_line("")


class _Verbs:
    """A stand-in for a verb's module, whose run raises."""

    def __init__(self, error: BaseException) -> None:
        self.Args = importlib.import_module("infra.cli.presets").Args
        self.error = error

    def run(self, args: object) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (errors.Failed("an actor\n  died"), 1, "lewm presets: an actor died\n"),
        (ValueError(""), 2, "lewm presets: ValueError\n"),
        (PermissionError(13, "Permission denied", "/data"), 2, "lewm presets: /data: Permission denied\n"),
        (ConnectionError("nothing answers"), 2, "lewm presets: nothing answers\n"),
        (OSError(28, "No space left on device", "/data"), 1, "lewm presets: /data: No space left on device\n"),
        (KeyError("x"), 1, "lewm presets: unexpected KeyError: 'x' (LEWM_DEBUG=1 shows where)\n"),
        (KeyboardInterrupt(), 130, "lewm presets: interrupted\n"),
    ],
)
def test_exit_codes(capsys, monkeypatch, error, code, expected):
    monkeypatch.setitem(sys.modules, "infra.cli.presets", _Verbs(error))  # pyright: ignore[reportArgumentType]
    assert lewm(capsys, "presets") == (code, "", expected)


def test_debugging_shows_where(capsys, monkeypatch):
    monkeypatch.setenv("LEWM_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown verb"):
        cli.main(["xyzzy"])


def test_shards_ls_stats_and_verify_as_json(capsys, dataset):
    code, out, _ = lewm(capsys, "shards", "ls", str(dataset.path), "--json")
    assert (code, len(json.loads(out))) == (0, 2)
    code, out, _ = lewm(capsys, "shards", "stats", str(dataset.path), "--json")
    found = json.loads(out)
    assert (code, found["digest"], found["episodes"]) == (0, dataset.digest, 6)
    assert [column["column"] for column in found["columns"]] == ["x", "angle", "x_dot"]
    code, out, _ = lewm(capsys, "shards", "verify", str(dataset.path), "--json")
    assert (code, json.loads(out)["ok"]) == (0, True)


def test_shards_as_tables_and_by_relative_path(capsys, dataset, monkeypatch):
    monkeypatch.chdir(dataset.path.parent)
    for verb, expected in (("ls", "part-00000"), ("stats", "x_dot"), ("verify", "every byte checks")):
        code, out, _ = lewm(capsys, "shards", verb, dataset.path.name)
        assert code == 0
        assert expected in out


def test_shards_ls_shows_the_datasets_of_a_home(capsys, tmp_path):
    home = tmp_path / "other"
    code, out, err = lewm(capsys, "shards", "ls", "--home", str(home))
    assert (code, out) == (0, "")
    assert "lewm collect" in err
    make_dataset(home / "data" / "walker-0", n=2, steps=3)
    code, out, _ = lewm(capsys, "shards", "ls", "--home", str(home), "--json")
    assert [row["name"] for row in json.loads(out)] == ["walker-0"]


def test_a_damaged_dataset_fails_verification(capsys, tmp_path):
    damaged = make_dataset(tmp_path / "damaged", n=2, steps=3).path
    (tar,) = (damaged / "shards").glob("*.tar")
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    code, out, _ = lewm(capsys, "shards", "verify", str(damaged), "--json")
    assert code == 1
    found = json.loads(out)
    assert not found["ok"]
    assert any(tar.stem in problem for problem in found["problems"])


def test_presets_as_table_and_as_json(capsys):
    code, out, _ = lewm(capsys, "presets", "--action-size", "6", "--json")
    assert code == 0
    assert {row["preset"] for row in json.loads(out)} >= {"tiny", "article"}
    code, out, _ = lewm(capsys, "presets")
    assert code == 0
    assert "article" in out


def test_a_training_run_keeps_its_dataset_absolute(tmp_path):
    module = importlib.import_module("infra.cli.train")
    args = module.parse("lewm train", ["--data", "data/x", "--preset", "article", "--optim.lr", "0.001"])
    assert args.config.data == str(tmp_path / "data" / "x")
    assert (args.config.preset, args.config.batch_size, args.config.optim.lr) == ("article", 256, 0.001)
