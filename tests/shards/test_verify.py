import hashlib
import json
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from shards.atomic import file_sha256
from shards.codec import encode, sample_sha256
from shards.dataset import Dataset
from shards.index import Row, ShardIndex, index_bytes, ipc_bytes, open_ipc
from shards.manifest import EPISODES, EPISODES_SCHEMA, MANIFEST, assemble, load, to_bytes
from shards.members import LIMITS, check_member, scan
from shards.statistics import pixel_sums
from shards.tar import TarWriter
from shards.verify import verify
from shards.writer import ShardWriter
from tests.helpers import make_dataset, make_episode


@pytest.fixture
def directory(tmp_path):
    return make_dataset(tmp_path / "dataset", 6, steps=4, shard_episodes=2).path


def _only_problem(directory):
    (problem,) = verify(directory).problems
    return problem


def test_a_sound_dataset_has_no_problem(directory):
    (directory / "shards/x.tar.0123abcd.tmp").write_bytes(b"half")
    report = verify(directory, threads=3)
    assert report.ok
    assert (report.shards, report.episodes) == (3, 6)
    assert report.bytes == sum(path.stat().st_size for path in (directory / "shards").iterdir()) - 4
    assert report.leftovers == ("x.tar.0123abcd.tmp",)


@pytest.mark.parametrize("flips", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_flipped_byte_is_found(directory, flips):
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    assert len(files) == 8
    rng = np.random.default_rng(flips)
    for flip in range(flips):
        path = files[flip % len(files)]
        sound = path.read_bytes()
        damaged, at = bytearray(sound), int(rng.integers(len(sound)))
        damaged[at] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        problems = verify(directory).problems
        assert any(path.name in problem for problem in problems), (path, at, problems)
        path.write_bytes(sound)
    assert verify(directory).ok


def test_names_the_damaged_episode_and_reading_it_fails(directory):
    dataset = Dataset.open(directory)
    members = dataset.frame_members(3)
    with open(members.path, "r+b") as file:
        file.seek(int(members.offset[2]) + 40)
        file.write(b"\xff\x00\xff")
    problems = verify(directory).problems
    assert len(problems) == 2
    assert "part-00002.tar is damaged" in problems[0]
    assert dataset.keys[3] in problems[1]
    with pytest.raises(ValueError, match=f"part-00002.tar: episode {dataset.keys[3]} is damaged"):
        dataset.read_episode(3)
    assert len(dataset.read_episode(2)) == 4


def test_names_a_truncated_tar(directory):
    tar = directory / "shards/part-00002.tar"
    tar.write_bytes(tar.read_bytes()[:5000])
    assert "part-00002.tar has 5000 bytes instead of" in verify(directory).problems[0]
    with pytest.raises(ValueError, match="cut off"):
        Dataset.open(directory).read_episode(2)


@pytest.mark.parametrize("suffix", ["tar", "arrow"])
def test_names_a_missing_shard(directory, suffix):
    (directory / f"shards/part-00002.{suffix}").unlink()
    assert _only_problem(directory).endswith(f"part-00002.{suffix} is missing")


def test_names_an_extra_shard(directory):
    with ShardWriter(directory, "extra") as writer:
        writer.write(make_episode(50))
    assert "shard extra is extra" in _only_problem(directory)


def test_names_a_stale_index(directory, tmp_path):
    other = make_dataset(tmp_path / "other", 6, steps=5, shard_episodes=2).path
    stale = directory / "shards/part-00002.arrow"
    shutil.copy(other / "shards/part-00002.arrow", stale)
    assert "part-00002.arrow is damaged or stale" in _only_problem(directory)
    with pytest.raises(ValueError, match=r"part-00002.arrow is missing or is not the index"):
        Dataset.open(directory).state(2)
    (directory / "manifest.json").unlink()
    problems = verify(directory).problems
    assert "no manifest" in problems[0]
    assert "part-00002.tar is damaged" in problems[1]


def test_names_a_manifest_that_describes_other_shards(directory, tmp_path):
    forged = (directory / "manifest.json").read_text().replace(load(directory).digest, "0" * 64)
    (directory / "manifest.json").write_text(_with_checksum(forged))
    assert "the manifest's digest is not that of the shards" in _only_problem(directory)


def _with_checksum(text):
    checksum = json.loads(text)["checksum"]
    zeros = text.replace(checksum, "0" * 64, 1)
    return zeros.replace("0" * 64, hashlib.sha256(zeros.encode()).hexdigest(), 1)


def test_a_manifest_of_another_version_is_refused(directory):
    text = (directory / "manifest.json").read_text().replace('"format_version": 1', '"format_version": 2')
    (directory / "manifest.json").write_text(_with_checksum(text))
    with pytest.raises(ValueError, match="has format 2; this program reads format 1"):
        Dataset.open(directory)


def test_a_manifest_cannot_name_files_elsewhere(directory):
    text = (directory / "manifest.json").read_text().replace('"part-00000"', '"../../secret"')
    (directory / "manifest.json").write_text(_with_checksum(text))
    with pytest.raises(ValueError, match="shard name"):
        Dataset.open(directory)


def test_episodes_of_an_interrupted_assembly_are_noticed(directory, tmp_path):
    other = make_dataset(tmp_path / "other", 7, steps=4).path
    shutil.copy(other / "episodes.arrow", directory / "episodes.arrow")
    assert "episodes.arrow is damaged or stale" in _only_problem(directory)
    with pytest.raises(ValueError, match="does not belong to"):
        Dataset.open(directory)
    assert assemble(directory).n_episodes == 6
    assert verify(directory).ok


def test_verify_of_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="lewm collect"):
        verify(tmp_path)


def test_an_index_whose_inline_arrays_lie_is_found(directory):
    _rewrite_index(directory, "reward", lambda values: [[value + 1 for value in row] for row in values])
    assemble(directory)
    problems = verify(directory).problems
    assert len(problems) == 2
    assert all("reward.npy is not that of the index" in problem for problem in problems)


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("frame_offset", lambda rows: [[2**63] * len(row) for row in rows], "outside the tar"),
        ("frame_offset", lambda rows: [[0] * len(row) for row in rows], "outside the tar"),
        ("frame_size", lambda rows: [[2**32 - 1] * len(row) for row in rows], "outside the tar"),
        ("member_offset", lambda rows: [[10**9] * len(row) for row in rows], "outside the tar"),
        ("frame_size", lambda rows: [row[1:] for row in rows], "disagree"),
        ("length", lambda rows: [0 for _ in rows], "disagree"),
        ("action", lambda rows: [row[1:] for row in rows], "disagree"),
        ("state", lambda rows: [None for _ in rows], "nulls"),
    ],
)
def test_an_index_that_points_astray_is_refused(directory, column, change, message):
    path = _rewrite_index(directory, column, change)
    with pytest.raises(ValueError, match=message):
        ShardIndex.open(path)


def _rewrite_index(directory, column, change):
    path = directory / "shards/part-00000.arrow"
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    at = table.schema.get_field_index(column)
    values = pa.array(change(table.column(at).to_pylist()), table.schema.field(at).type)
    table = table.set_column(at, table.schema.field(at), values)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    return path


def test_damaged_indexes_are_errors_and_nothing_worse(directory):
    path = directory / "shards/part-00000.arrow"
    sound, rng = path.read_bytes(), np.random.default_rng(1)
    outcomes = set()
    for _ in range(200):
        damaged = bytearray(sound[: int(rng.integers(len(sound)))] if rng.random() < 0.2 else sound)
        for at in rng.integers(max(1, len(damaged)), size=3):
            damaged[at : at + 1] = bytes([int(rng.integers(256))]) if damaged else b""
        path.unlink()
        path.write_bytes(damaged)
        try:
            index = ShardIndex.open(path)
            [index.members(i) for i in range(len(index))]
            outcomes.add("read")
        except ValueError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("key.pickle", "type 'pickle' is not read"),
        ("key.pkl", "type 'pkl' is not read"),
        ("key.pth", "type 'pth' is not read"),
        ("../key.json", "leaves the dataset"),
        ("a/../../key.json", "leaves the dataset"),
        ("/etc/key.json", "absolute"),
        ("pipe:cat.json", "leaves the dataset"),
        ("a\\..\\b.json", "leaves the dataset"),
        ("json", "not <key>.<suffix>"),
        ("key.00001.jpg\n", "not <key>.<suffix>"),
    ],
)
def test_hostile_member_names_are_refused(tmp_path, name, message):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(ValueError, match=message) as caught:
        list(scan(tmp_path / "x.tar"))
    assert "x.tar" in str(caught.value)


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.GNUTYPE_LONGNAME],
)
def test_members_that_are_no_plain_files_are_refused(tmp_path, kind):
    member = tarfile.TarInfo("key.json")
    member.type, member.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(member)
    with pytest.raises(ValueError, match="only plain files are read"):
        list(scan(tmp_path / "x.tar"))


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"mtime": "1.5", "uname": "x"}, ""),
        ({"path": "/etc/passwd"}, "sets 'path'"),
        ({"size": "99999"}, "sets 'size'"),
        ({"mtime": "1" * 5000}, "over the limit"),
    ],
)
def test_pax_headers_may_only_set_times_and_owners(tmp_path, headers, message):
    member = tarfile.TarInfo("key.json")
    member.pax_headers = headers
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member)
    if message:
        with pytest.raises(ValueError, match=message):
            list(scan(tmp_path / "x.tar"))
    else:
        assert [m.suffix for m in scan(tmp_path / "x.tar")] == ["json"]


def test_oversized_and_overlong_members_are_refused(tmp_path):
    for kind, limit in LIMITS.items():
        assert check_member(f"key.{kind}", limit) == ("key", kind)
        with pytest.raises(ValueError, match="over the limit"):
            check_member(f"key.{kind}", limit + 1)
    member = tarfile.TarInfo("key.00000.jpg")
    member.size = 60 << 20
    (tmp_path / "x.tar").write_bytes(member.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
    with pytest.raises(ValueError, match="reaches past the end"):
        list(scan(tmp_path / "x.tar"))
    member.size = 1 << 50
    (tmp_path / "x.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(ValueError, match="over the limit"):
        list(scan(tmp_path / "x.tar"))


def test_a_tar_that_stops_or_is_none_is_refused(directory, tmp_path):
    data = (directory / "shards/part-00000.tar").read_bytes()
    for garbage, message in (
        (data[:700], "past the end"),
        (data[:100], "cut off"),
        (b"\x1f\x8b" * 600, "no tar header"),
    ):
        (tmp_path / "x.tar").write_bytes(garbage)
        with pytest.raises(ValueError, match=message):
            list(scan(tmp_path / "x.tar"))


def test_a_shard_with_a_hostile_member_does_not_verify(directory):
    tar = directory / "shards/part-00000.tar"
    with tarfile.open(tar, "a", format=tarfile.USTAR_FORMAT) as file:
        file.addfile(tarfile.TarInfo("key.pickle"))
    problems = verify(directory).problems
    assert any("'key.pickle'" in problem for problem in problems)


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        ("00000x.pickle", "type 'pickle' is not read"),
        ("00000.json.pth", "type 'pth' is not read"),
        (f"{'x' * 90}.json", "is not read"),
    ],
)
def test_a_hostile_member_that_the_index_names_does_not_verify(tmp_path, suffix, message):
    """Also one whose name begins like a frame's, or is too long for the header that it stands in."""
    episode = make_episode(0, steps=3)
    members, key = [*encode(episode, "jpeg"), (suffix, b"x")], episode.info.key
    tar = tmp_path / "shards/x.tar"
    tar.parent.mkdir()
    with tar.open("wb") as file:
        writer = TarWriter(file)
        located = [(name, writer.write(f"{key}.{name}"[:100], data), len(data)) for name, data in members]
        writer.close()
    row = Row(key, sample_sha256(members), dict(members)["json"].decode(), located[:4], located[4:],
              episode.action, episode.reward, episode.state, *pixel_sums(episode.frames))  # fmt: skip
    index = index_bytes([row], "jpeg-q95-444", tar.stat().st_size, file_sha256(tar))
    tar.with_suffix(".arrow").write_bytes(index)
    assemble(tmp_path)
    assert message in _only_problem(tmp_path)


@pytest.mark.parametrize("forge", ["split", "length", "row", "order", "another key"])
def test_a_forged_list_of_episodes_is_named(directory, forge):
    """`episodes.arrow` that is not what the shards say, with a manifest that vouches for it."""
    path, manifest = directory / EPISODES, load(directory)
    batch = open_ipc(path, EPISODES_SCHEMA)
    columns = {name: batch.column(name).to_pylist() for name in batch.schema.names}
    if forge == "order":
        columns = {name: values[::-1] for name, values in columns.items()}
    elif forge == "another key":
        columns["key"][0] = columns["key"][0].replace("cartpole", "cartpola")
    else:
        columns[forge][2] = (columns[forge][2] + 1) % 2
    arrays = [pa.array(columns[field.name], field.type) for field in EPISODES_SCHEMA]
    path.unlink()  # a mapping of it may be alive, and must not shrink under its reader
    path.write_bytes(ipc_bytes(pa.record_batch(arrays, schema=EPISODES_SCHEMA)))
    sha256, size = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size
    forged = replace(manifest, episodes_sha256=sha256, episodes_bytes=size)
    (directory / MANIFEST).write_bytes(to_bytes(forged))
    assert "episodes.arrow is not what the shards say: row" in _only_problem(directory)


def test_progress_counts_every_byte(directory):
    seen = []
    report = verify(directory, threads=2, on_progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (report.bytes, report.bytes)
