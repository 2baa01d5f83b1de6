"""A manifest is checked field by field: whoever wrote it, it is used as it should be or refused in one line."""

import contextlib
import hashlib
import json

import pytest

from shards.manifest import MANIFEST, load
from shards.untrusted import read_json, record
from tests.helpers import make_dataset


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("sound") / "data", n=4, shard_episodes=2).path


def write(directory, values):
    """A manifest of these values, whose checksum holds."""
    text = json.dumps({**values, "checksum": "0" * 64}, indent=2) + "\n"
    checksum = hashlib.sha256(text.encode()).hexdigest()
    (directory / MANIFEST).write_text(text.replace("0" * 64, checksum, 1))


def values_of(directory):
    return json.loads((directory / MANIFEST).read_text())


def leaves(value, path=()):
    """Paths of all values in a document, containers too."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(each, (*path, key))


def parent(values, path):
    for key in path[:-1]:
        values = values[key]
    return values


def test_what_was_written_is_read(sound, tmp_path):
    write(tmp_path, values_of(sound))
    assert load(tmp_path).digest == load(sound).digest


def test_every_field_must_be_there_and_of_its_type(sound, tmp_path):
    paths = [path for path in leaves(values_of(sound)) if path != ("checksum",)]
    assert len(paths) > 60
    optional = {"periodic"}
    for path in paths:
        replacements = [None, True, -1, 1 << 63, "../../x", [], {}, ["x"], {"x": 1}, 0.5]
        present = parent(values_of(sound), path)[path[-1]]
        for replacement in replacements:
            values = values_of(sound)
            parent(values, path)[path[-1]] = replacement
            write(tmp_path, values)
            kind = type(replacement)
            if kind is type(present) or (kind in (int, float) and type(present) in (int, float)):
                with contextlib.suppress(ValueError):  # of the right type: it may be right
                    load(tmp_path)
                continue
            with pytest.raises(ValueError, match=r"manifest\.json cannot be used|is damaged"):
                load(tmp_path)
        if not isinstance(path[-1], int) and path[0] != "statistics" and path[-2:-1] != ("versions",):
            values = values_of(sound)
            del parent(values, path)[path[-1]]
            write(tmp_path, values)
            if path[-1] in optional:
                assert load(tmp_path)
                continue
            with pytest.raises(ValueError, match=r"cannot be used"):
                load(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("digest",), "../../x", "is no sha256"),
        (("digest",), "A" * 64, "is no sha256"),
        (("shards", 0, "index_sha256"), "", "is no sha256"),
        (("shards", 0, "name"), "../x", "shard name"),
        (("n_steps",), 1, "n_steps disagrees"),
        (("n_episodes",), 1, "n_episodes disagrees"),
        (("common", "size"), 10**6, "impossible"),
        (("common", "dt"), 0, "impossible"),
        (("statistics", "pixel_std"), [1, 0, 1], "pixel_std"),
        (("statistics", "state_mean"), [], "state_mean"),
        (("common", "unknown"), 1, "common.unknown is an unknown field"),
    ],
)
def test_impossible_values_are_named(sound, tmp_path, path, value, words):
    values = values_of(sound)
    parent(values, path)[path[-1]] = value
    write(tmp_path, values)
    with pytest.raises(ValueError, match=words):
        load(tmp_path)


@pytest.mark.parametrize("text", ["1e999", "-1e999", "NaN", "Infinity", "[" * 100_000, "{", b"\xff", "1" * 5000])
def test_json_that_is_no_value_is_refused(text):
    with pytest.raises(ValueError, match=r"finite|nested|Expecting|decode|digits"):
        read_json(text)


def test_a_record_is_an_object():
    from shards.episode import StateColumn

    with pytest.raises(ValueError, match="the document is no JSON object"):
        record(StateColumn, [])
    with pytest.raises(ValueError, match=r"column\.kind is 'speed'"):
        record(StateColumn, {"name": "x", "unit": "m", "kind": "speed", "observable": "hidden"}, "column")
