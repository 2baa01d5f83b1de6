"""Parsers under hostile and random input: ValueError or OSError, never a crash or memory in proportion to a claim.
`test_bounded` does the same to whole readers, in a child with bounded memory and time."""

import hashlib
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.decode import decode_into
from shards.codec import encode, parse_metadata, read_npy
from shards.dataset import read_members
from shards.index import Row, ShardIndex, index_bytes, open_ipc
from shards.manifest import MANIFEST, load
from shards.members import scan
from tests.helpers import make_dataset, make_episode

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SCHEMA = pa.schema([("key", pa.utf8()), ("length", pa.uint32())])


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("sound"), 2, steps=3, size=8).path


@st.composite
def mutations(draw):
    """Changes to a file: bytes at fractions of its length, and perhaps a cut."""
    changes = draw(
        st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=9)), max_size=6)
    )
    return changes, draw(st.none() | st.floats(0, 1))


def mutate(data, mutation):
    changes, cut = mutation
    data = bytearray(data)
    for at, new in changes:
        at = int(at * len(data))
        data[at : at + len(new)] = new[: len(data) - at]
    return bytes(data[: int(cut * len(data))] if cut is not None else data)


def _survives(read):
    with suppress(ValueError, OSError):
        read()


@FUZZ
@given(mutations())
def test_fuzzed_tars(sound, tmp_path, mutation):
    (tmp_path / "x.tar").write_bytes(mutate((sound / "shards/part-00000.tar").read_bytes(), mutation))
    _survives(lambda: list(scan(tmp_path / "x.tar")))


@FUZZ
@given(mutations())
def test_fuzzed_indexes(sound, tmp_path, mutation):
    path = tmp_path / "x.arrow"
    path.unlink(missing_ok=True)  # an earlier mapping may be alive, and must not shrink under its reader
    path.write_bytes(mutate((sound / "shards/part-00000.arrow").read_bytes(), mutation))

    def read():
        index = ShardIndex.open(path)
        for row in range(len(index)):
            assert all([index.members(row), len(index.state(row)), index.pixel_sums(row), index.keys])
            index.info(row)

    _survives(read)


@FUZZ
@given(mutations(), st.booleans())
def test_fuzzed_manifests(sound, tmp_path, mutation, mend):
    data = mutate((sound / MANIFEST).read_bytes(), mutation)
    if mend:
        zeros = data[:17] + b"0" * 64 + data[81:]
        data = zeros[:17] + hashlib.sha256(zeros).hexdigest().encode() + zeros[81:]
    (tmp_path / MANIFEST).write_bytes(data)
    _survives(lambda: load(tmp_path))


@FUZZ
@given(mutations())
def test_fuzzed_metadata(mutation):
    episode = make_episode(0, steps=3)
    data = mutate(dict(encode(episode, "jpeg"))["json"], mutation)
    _survives(lambda: parse_metadata(episode.info.key, data))


@FUZZ
@given(mutations(), st.sampled_from(["jpeg", "raw"]))
def test_fuzzed_frames_and_arrays(mutation, encoding):
    members = dict(encode(make_episode(0, steps=1), encoding))
    frame = next(iter(members.values()))
    _survives(lambda: decode_into(memoryview(mutate(frame, mutation)), np.empty((16, 16, 3), np.uint8)))
    _survives(lambda: read_npy(mutate(members["state.npy"], mutation)))


def _batch_file(path, columns, schema, **options):
    with pa.ipc.new_file(path, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_a_compressed_index_is_refused_before_it_expands(tmp_path, codec):
    bomb = [pa.array([bytes(1 << 26).decode()]), pa.array([1], pa.uint32())]
    _batch_file(tmp_path / "x.arrow", bomb, SCHEMA, compression=codec)
    assert (tmp_path / "x.arrow").stat().st_size < 1 << 20
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(ValueError, match="record batch is compressed"):
        open_ipc(tmp_path / "x.arrow", SCHEMA)
    assert pa.default_memory_pool().max_memory() == before


def test_dictionaries_and_further_batches_are_refused(tmp_path):
    schema = pa.schema([("key", pa.dictionary(pa.int8(), pa.utf8())), ("length", pa.uint32())])
    columns = [pa.array(["a"]).dictionary_encode().cast(schema.field(0).type), pa.array([1], pa.uint32())]
    _batch_file(tmp_path / "x.arrow", columns, schema)
    with pytest.raises(ValueError, match="another schema"):
        open_ipc(tmp_path / "x.arrow", SCHEMA)
    batch = pa.record_batch([pa.array(["a"]), pa.array([1], pa.uint32())], schema=SCHEMA)
    with pa.ipc.new_file(tmp_path / "y.arrow", SCHEMA) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch)
    with pytest.raises(ValueError, match="not one record batch"):
        open_ipc(tmp_path / "y.arrow", SCHEMA)


CHILD = """
import resource, sys
from pathlib import Path
from tests.shards.test_hostile import refused
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), used + (256 << 20)))
print(*(kind for kind in ("jpeg", "npy", "index") if refused(kind, Path(sys.argv[1]))))
"""


def refused(kind: str, directory: Path) -> bool:
    """Whether reading `kind` ends in ValueError; run in a child with bounded memory."""
    try:
        if kind == "jpeg":
            data = bytearray(simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8)))
            at = data.index(b"\xff\xc0") + 5
            data[at : at + 4] = b"\xff\xdc\xff\xdc"  # 65500 x 65500: 12 GB decoded
            decode_into(memoryview(bytes(data)), np.empty((8, 8, 3), np.uint8))
        elif kind == "npy":
            read_npy(b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999,), }\n")
        else:
            row = Row("k", bytes(32), "{}", [("", 512, 9), ("", 1 << 40, 9)], [], np.zeros((1, 1), np.float32),
                      np.zeros(1, np.float32), np.zeros((2, 0), np.float32), [0] * 3, [0] * 3)  # fmt: skip
            (directory / "x.arrow").write_bytes(index_bytes([row], "raw", 1 << 50, "0" * 64))
            (directory / "x.tar").write_bytes(bytes(10240))
            read_members(ShardIndex.open(directory / "x.arrow"), 0)
    except ValueError:
        return True
    return False


def test_claims_of_size_take_no_memory(tmp_path):
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    child = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert child.stdout.split() == ["jpeg", "npy", "index"], child.stderr
