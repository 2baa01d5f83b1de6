import os
import shutil
import signal
import subprocess
import sys

import pytest

from shards import atomic
from shards.dataset import Dataset
from shards.manifest import assemble, digest_of
from shards.merge import merge
from shards.verify import verify
from shards.writer import ShardWriter
from tests.helpers import make_dataset, make_episode


@pytest.fixture
def sources(tmp_path):
    one = make_dataset(tmp_path / "one", 4, steps=4, shard_episodes=2).path
    return one, _more(tmp_path / "two", range(10, 13))


def _more(path, numbers, name="part-00000", **keywords):
    with ShardWriter(path, name) as writer:
        for number in numbers:
            writer.write(make_episode(number, steps=4, **keywords))
    assemble(path)
    return path


@pytest.mark.parametrize("linked", [True, False])
def test_a_merge_is_the_union_and_rewrites_no_tar(tmp_path, sources, monkeypatch, linked):
    if not linked:
        monkeypatch.setattr("shards.merge._link", lambda there, here: False)
    seen = []
    manifest = merge(sources, tmp_path / "out", lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    merged, parts = Dataset.open(tmp_path / "out"), [Dataset.open(source) for source in sources]
    assert list(merged.keys) == sorted(key for part in parts for key in part.keys)
    indexes = [(part.keys[i], part._find(i)) for part in parts for i in range(len(part))]
    assert manifest.digest == digest_of((key, index.sha256(row)) for key, (index, row) in indexes)
    assert verify(tmp_path / "out").problems == ()
    names = [shard.name for shard in manifest.shards]
    assert "part-00002" in names
    assert sum(name.startswith("part-00000-") for name in names) == 2
    inode = (sources[0] / "shards/part-00002.tar").stat().st_ino
    assert ((tmp_path / "out/shards/part-00002.tar").stat().st_ino == inode) == linked


def test_order_and_repetition_do_not_matter(tmp_path, sources):
    first = merge(sources, tmp_path / "out")
    assert merge(sources[::-1], tmp_path / "out").shards == first.shards
    assert merge(sources[::-1], tmp_path / "other").digest == first.digest


def test_refusals_come_before_anything_is_written(tmp_path, sources):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"1 dataset\(s\)"):
        merge(sources[:1], out)
    with pytest.raises(ValueError, match=r"0-00000001 is in .*one and in .*again"):
        merge([*sources, _more(tmp_path / "again", [1])], out)
    with pytest.raises(ValueError, match=r"differ in dt: 0.02 in .*one, 0.04 in .*slow"):
        merge([*sources, _more(tmp_path / "slow", [20], dt=0.04)], out)
    assert not out.exists()
    with pytest.raises(ValueError, match=r"odd.arrow is in none of the datasets"):
        merge(sources, _more(out, [30], name="odd"))


def test_a_damaged_source_is_refused(tmp_path, sources, monkeypatch):
    tar = sources[0] / "shards/part-00002.tar"
    sound = tar.read_bytes()
    tar.write_bytes(sound[:-1])
    with pytest.raises(ValueError, match="another size"):
        merge(sources, tmp_path / "out")
    monkeypatch.setattr("shards.merge._link", lambda there, here: False)
    tar.write_bytes(sound[:700] + bytes([sound[700] ^ 1]) + sound[701:])
    with pytest.raises(ValueError, match=r"part-00002.tar is damaged"):
        merge(sources, tmp_path / "other")
    tar.write_bytes(sound)
    assert merge(sources, tmp_path / "other").n_episodes == 7


KILLED = """
import os, signal, sys
from pathlib import Path
from shards.merge import merge
left, replace = int(sys.argv[1]), os.replace
def dying(*arguments):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*arguments)
os.replace = dying
merge([Path(path) for path in sys.argv[3:]], Path(sys.argv[2]))
"""


@pytest.mark.parametrize("moment", [0, 1, 4, 7])
def test_a_killed_merge_goes_on(tmp_path, sources, moment):
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(moment), str(out), *map(str, sources)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    digest = merge(sources, out).digest
    assert digest == merge(sources, tmp_path / "whole").digest
    assert verify(out).problems == ()
    assert not list(out.rglob(f"*{atomic.TMP_SUFFIX}"))


@pytest.mark.parametrize("moment", [0, 1, 2, 3])
def test_what_a_killed_merge_leaves_is_told_from_what_is_somebodys(tmp_path, sources, moment):
    """Also a tar whose index was not yet in place: the next writer in the directory, whichever it is, removes it."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(moment), str(out), *map(str, sources)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    atomic.remove_leftovers(out)
    names = {path.name for path in (out / "shards").iterdir()}
    assert {name.rpartition(".")[2] for name in names} <= {"tar", "arrow"}
    assert {name[:-4] for name in names if name.endswith("tar")} == {
        name[:-6] for name in names if name.endswith("arrow")
    }


def test_a_linked_tar_outlives_its_source(tmp_path, sources):
    merge(sources, tmp_path / "out")
    shutil.rmtree(sources[0])
    assert verify(tmp_path / "out").ok
    assert os.stat(tmp_path / "out/shards/part-00002.tar").st_nlink == 1
