import dataclasses
import hashlib
import io
import json
from typing import get_args

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st

from shards.codec import Encoding, decode, decode_frame, encode, encode_frame, npy_bytes, read_npy, sample_sha256
from shards.split import split_of
from tests.helpers import make_episode


@pytest.mark.parametrize("size", [16, 136])
def test_jpeg_round_trip_is_close_and_the_rest_exact(size):
    episode = make_episode(3, steps=4, size=size)
    back = decode(episode.info.key, dict(encode(episode, "jpeg")))
    error = np.abs(back.frames.astype(int) - episode.frames)
    assert error.mean() < 2
    assert error.max() < 60
    assert back.info == episode.info
    for name in ("action", "reward", "state"):
        np.testing.assert_array_equal(getattr(back, name), getattr(episode, name))


def test_raw_round_trip_is_exact():
    episode = make_episode(3, steps=4)
    back = decode(episode.info.key, dict(encode(episode, "raw")))
    np.testing.assert_array_equal(back.frames, episode.frames)
    assert back.info == episode.info


@pytest.mark.parametrize(("size", "chroma"), [(128, "444"), (129, "420")])
def test_chroma_is_full_up_to_128_px_and_recorded(size, chroma):
    members = dict(encode(make_episode(0, steps=1, size=size), "jpeg"))
    assert simplejpeg.decode_jpeg_header(members["00000.jpg"])[3] == chroma
    assert json.loads(members["json"])["encoding"] == f"jpeg-q95-{chroma}"


@pytest.mark.parametrize("encoding", get_args(Encoding))
def test_members_come_in_tar_order_and_hash_as_documented(encoding):
    members = encode(make_episode(0, steps=11), encoding)
    assert [suffix for suffix, _ in members] == sorted(suffix for suffix, _ in members)
    table = b"".join(suffix.encode() + b"\0" + len(data).to_bytes(8, "big") for suffix, data in members)
    assert sample_sha256(members) == hashlib.sha256(table + b"".join(data for _, data in members)).digest()


def test_decodes_into_a_given_buffer():
    frame = make_episode(0).frames[0]
    for encoding in get_args(Encoding):
        data, out = encode_frame(frame, encoding), np.zeros_like(frame)
        assert decode_frame(data, 16, out) is out or np.shares_memory(decode_frame(data, 16, out), out)
        np.testing.assert_array_equal(out, decode_frame(data, 16))
    with pytest.raises(ValueError, match="contiguous"):
        decode_frame(encode_frame(frame, "jpeg"), 16, np.zeros((16, 16, 3), np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.parametrize("shape", [(3,), (4, 2), (5, 0), (2, 2, 3)])
def test_npy_is_what_numpy_writes_and_reads(dtype, shape):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    file = io.BytesIO()
    np.save(file, array)
    assert npy_bytes(array) == file.getvalue()
    np.testing.assert_array_equal(read_npy(file.getvalue()), array)


def _saved(array, **keywords):
    file = io.BytesIO()
    np.save(file, array, **keywords)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_saved(np.array([{"a": 1}], object), allow_pickle=True), "not a plain"),
        (_saved(np.zeros(3, np.float64)), "not a plain"),
        (_saved(np.asfortranarray(np.zeros((3, 2), np.float32))), "not a plain"),
        (_saved(np.zeros(100, np.float32)).replace(b"(100,)", b"(999,)"), "400 bytes follow"),
        (_saved(np.zeros(3, np.float32))[:-1], "11 bytes follow"),
        (_saved(np.zeros(3, np.float32)).replace(b"(3,), }            ", b"(9000000000000,), }"), "12 bytes follow"),
        (b"", "not a plain"),
        (b"\x93NUMPY\x01\x00\xff\xff{" + b"(" * 60000, "not a plain"),
    ],
)
def test_refuses_hostile_npy(data, message):
    with pytest.raises(ValueError, match=message):
        read_npy(data)


def test_refuses_jpegs_of_another_size_before_decoding_them():
    bomb = simplejpeg.encode_jpeg(np.zeros((4000, 4000, 3), np.uint8))
    with pytest.raises(ValueError, match="4000x4000"):
        decode_frame(bomb, 16)
    forged = bytearray(encode_frame(make_episode(0).frames[0], "jpeg"))
    at = forged.index(b"\xff\xc0") + 5
    forged[at : at + 4] = b"\x7f\xff\x7f\xff"
    with pytest.raises(ValueError, match="32767x32767"):
        decode_frame(bytes(forged), 16)


@given(st.binary(max_size=300))
def test_garbage_is_an_error_and_nothing_worse(data):
    for head in (b"", b"\xff\xd8\xff", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': ("):
        with pytest.raises(ValueError, match=r"."):
            decode_frame(head + data, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"00001.jpg": None}, "00001.jpg is missing"),
        ({"state.npy": None}, "state.npy is missing"),
        ({"json": None}, "no member"),
        ({"extra.npy": b"x"}, "extra.npy is unknown"),
        ({"json": b"[" * 100_000}, "not JSON"),
        ({"json": b"{}"}, "malformed"),
        ({"json": b"\xff\xfe"}, "not JSON"),
        ({"reward.npy": npy_bytes(np.zeros(5, np.float32))}, r"reward is float32\[5\]"),
        ({"reward.npy": b"x"}, "reward.npy: not a plain"),
        ({"00001.jpg": b"\xff\xd8"}, "00001.jpg"),
    ],
)
def test_decode_names_what_is_wrong(change, message):
    episode = make_episode(0, steps=3)
    members = {**dict(encode(episode, "jpeg")), **change}
    with pytest.raises(ValueError, match=message):
        decode(episode.info.key, {suffix: data for suffix, data in members.items() if data is not None})


@pytest.mark.parametrize(
    ("name", "value"),
    [("size", 10**9), ("size", True), ("number", "3"), ("columns", [{"name": "x"}]), ("success", 1), ("extra", 1)],
)
def test_metadata_of_wrong_types_is_refused(name, value):
    episode = make_episode(0, steps=3)
    members = dict(encode(episode, "jpeg"))
    record = json.loads(members["json"])
    record["info"][name] = value
    with pytest.raises(ValueError, match=r"json is malformed"):
        decode(episode.info.key, {**members, "json": json.dumps(record).encode()})


def test_metadata_of_another_episode_is_refused():
    members = dict(encode(make_episode(0), "jpeg"))
    with pytest.raises(ValueError, match="it describes"):
        decode(make_episode(1).info.key, members)


def test_refuses_to_write_what_readers_would_refuse():
    episode = make_episode(0)
    empty = dataclasses.replace(
        episode,
        frames=episode.frames[:1],
        action=episode.action[:0],
        reward=episode.reward[:0],
        state=episode.state[:1],
    )
    with pytest.raises(ValueError, match="0 steps"):
        encode(empty, "jpeg")
    with pytest.raises(ValueError, match="characters"):
        encode(make_episode(0, environment="dmc/" + "a" * 90), "jpeg")
    with pytest.raises(ValueError, match="over the limit"):
        encode(make_episode(0, policy={"kind": "x" * 2_000_000}), "jpeg")


def test_split_is_fixed_by_the_key():
    keys = [f"dmc-cartpole-swingup-9f86d081-0-{n:08d}" for n in range(20_000)]
    splits = [split_of(key) for key in keys]
    assert abs(splits.count("train") / 20_000 - 0.8) < 0.01
    assert abs(splits.count("validation") / 20_000 - 0.1) < 0.01
    known = {n: splits[n] for n in (0, 1, 2, 7, 16, 37)}
    assert list(known.values()) == ["train", "train", "test", "test", "validation", "validation"]
    for n, split in known.items():
        u = int.from_bytes(hashlib.sha256(keys[n].encode()).digest()[:8], "big") / 2**64
        assert split == ("train" if u < 0.8 else "validation" if u < 0.9 else "test")
