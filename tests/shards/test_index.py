"""What an index claims is checked before any of it is used."""

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from shards.dataset import Dataset
from shards.index import _SCHEMA, Row, ShardIndex, index_bytes, ipc_bytes, open_ipc
from shards.manifest import EPISODES, EPISODES_SCHEMA, to_bytes
from shards.members import MAX_EPISODE_BYTES
from tests.helpers import make_dataset

TAR = 64 << 30


def row(key="a", at=512):
    """An episode of one step whose members begin at a byte of the tar."""
    frames = [("00000.jpg", at, 10), ("00001.jpg", at + 1024, 10)]
    members = [(suffix, at + 2048 + 1024 * n, 10) for n, suffix in enumerate(("action.npy", "json"))]
    numbers = np.zeros((1, 2), np.float32)
    return Row(key, bytes(32), "{}", frames, members, numbers, numbers[:, 0], np.zeros((2, 3), np.float32), [0] * 3,
               [0] * 3)  # fmt: skip


def opened(tmp_path, rows):
    path = tmp_path / "part.arrow"
    path.write_bytes(index_bytes(rows, "raw", TAR, "0" * 64))
    return ShardIndex.open(path)


def test_rows_follow_each_other(tmp_path):
    index = opened(tmp_path, [row("a"), row("b", 8192)])
    assert index.keys == ["a", "b"]
    for second in (row("b"), row("b", 1536)):
        with pytest.raises(ValueError, match=r"episode b begins before the one before it ends"):
            opened(tmp_path, [row("a"), second])


def test_an_episode_that_is_spread_over_the_tar_is_refused(tmp_path):
    spread = row()
    spread = replace(spread, frames=[spread.frames[0], ("00001.jpg", 512 + MAX_EPISODE_BYTES, 10)])
    with pytest.raises(ValueError, match="episode a spans too many bytes"):
        opened(tmp_path, [spread])


@pytest.mark.parametrize(
    "header",
    [
        '{"format_version": 1, "encoding": "raw", "tar_bytes": 1e999, "tar_sha256": ""}',
        '{"format_version": 1, "encoding": "raw", "tar_bytes": 9223372036854775808, "tar_sha256": ""}',
        '{"format_version": 1, "encoding": "raw", "tar_bytes": "4096", "tar_sha256": ""}',
        '{"format_version": 1, "encoding": "raw", "tar_bytes": 4096}',
        '{"format_version": 1, "encoding": ["raw"], "tar_bytes": 4096, "tar_sha256": ""}',
        '{"format_version": true, "encoding": "raw", "tar_bytes": 4096, "tar_sha256": ""}',
        "[" * 100_000,
        "[]",
        "",
    ],
)
def test_a_header_that_no_writer_makes_is_a_value_error(tmp_path, header):
    path = tmp_path / "part.arrow"
    path.write_bytes(index_bytes([row()], "raw", TAR, "0" * 64))
    batch = open_ipc(path, _SCHEMA)
    other = tmp_path / "other.arrow"
    other.write_bytes(ipc_bytes(batch.replace_schema_metadata({"lewm": header})))
    with pytest.raises(ValueError, match="its lewm metadata is missing or malformed"):
        ShardIndex.open(other)


@pytest.mark.parametrize(("column", "value"), [("row", 9), ("row", 1), ("length", 77)])
def test_episodes_that_the_index_does_not_have_are_refused(tmp_path, column, value):
    """`episodes.arrow` forged together with the checksums that vouch for it."""
    original = make_dataset(tmp_path / "data", n=4, shard_episodes=2)
    shutil.copytree(original.path, tmp_path / "forged")
    batch = open_ipc(original.path / EPISODES, EPISODES_SCHEMA)
    columns = {name: batch.column(name).to_pylist() for name in batch.schema.names}
    columns[column][0] = value
    forged = ipc_bytes(pa.record_batch([pa.array(columns[f.name], f.type) for f in batch.schema], schema=batch.schema))
    (tmp_path / "forged" / EPISODES).write_bytes(forged)
    manifest = replace(
        original.manifest, episodes_bytes=len(forged), episodes_sha256=hashlib.sha256(forged).hexdigest()
    )
    (tmp_path / "forged" / "manifest.json").write_bytes(to_bytes(manifest))
    dataset = Dataset.open(tmp_path / "forged")
    assert json.loads((tmp_path / "forged" / "manifest.json").read_text())["digest"] == original.digest
    with pytest.raises(ValueError, match="whose index has another there"):
        dataset.action(0)
    assert dataset.read_episode(2).info == original.read_episode(2).info
