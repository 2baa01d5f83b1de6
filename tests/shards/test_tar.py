import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.writer import TarWriter as StockWriter

from shards.codec import encode
from shards.tar import TarWriter
from tests.helpers import make_episode


def _ours(members):
    sink = io.BytesIO()
    writer = TarWriter(sink)
    offsets = [writer.write(name, data) for name, data in members]
    writer.close()
    assert writer.offset == len(sink.getvalue())
    for offset, (_, data) in zip(offsets, members, strict=True):
        assert sink.getvalue()[offset : offset + len(data)] == data
    return sink.getvalue()


def _stock(key, members):
    sink = io.BytesIO()
    writer = StockWriter(sink, user="lewm", group="lewm", mtime=0, encoder=False)
    writer.write({"__key__": key, **dict(members)})
    writer.close()
    return sink.getvalue()


@given(st.dictionaries(st.from_regex(r"[a-z]{1,5}\.(jpg|npy|json)", fullmatch=True), st.binary(max_size=2000)))
def test_the_bytes_are_those_of_webdataset(members):
    ordered = sorted(members.items())
    assert _ours([(f"key.{suffix}", data) for suffix, data in ordered]) == _stock("key", ordered)


def test_an_episode_is_the_sample_that_webdataset_writes():
    episode = make_episode(0, steps=30)
    members, key = encode(episode, "jpeg"), episode.info.key
    assert _ours([(f"{key}.{suffix}", data) for suffix, data in members]) == _stock(key, members)


def test_a_name_that_no_header_holds_is_a_mistake_of_the_caller():
    with pytest.raises(AssertionError, match="longer than a ustar header"):
        TarWriter(io.BytesIO()).write("k" * 101, b"")
