import logging
import os
import shutil

import pytest

from pipelines.decode import DamagedEpisodeError
from pipelines.loader import Loader, LoaderConfig
from pipelines.windows import WindowSpec
from shards.dataset import Dataset
from tests.helpers import make_dataset
from tests.pipelines import naive

SPEC = WindowSpec(history=1, stack=2)
KEYWORDS = {"split": None, "batch_size": 6, "seed": 3}
SKIP = LoaderConfig(damaged="skip")
EPISODE, FRAME = 4, 5


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("clean"), 8, steps=(9, 14), size=8, shard_episodes=2)


def damage_frame(dataset, episode=EPISODE, frame=FRAME):
    members = dataset.frame_members(episode)
    with open(members.path, "r+b") as file:
        file.seek(int(members.offset[frame]))
        file.write(bytes(int(members.size[frame])))


@pytest.fixture
def dataset(clean, tmp_path):
    shutil.copytree(clean.path, tmp_path / "copy")
    return Dataset.open(tmp_path / "copy")


@pytest.fixture
def damaged(dataset):
    """One frame of one episode is zeros."""
    damage_frame(dataset)
    return dataset


def is_damaged(window):
    return window[0] == EPISODE and window[1] - 1 <= FRAME <= window[1] + 1


def steps_of(dataset):
    return len(naive.windows(dataset.lengths, SPEC)) // KEYWORDS["batch_size"]


def test_an_error_names_shard_episode_and_member_and_comes_in_its_turn(clean, damaged):
    ids = naive.window_ids(naive.global_batches(clean, SPEC, 2 * steps_of(clean), **KEYWORDS))
    bad = next(n for n, batch in enumerate(ids) if any(map(is_damaged, batch)))
    with Loader(damaged, SPEC, config=LoaderConfig(threads=3, prefetch=3), **KEYWORDS) as loader:
        assert [[item.window for item in naive.items(next(loader))] for _ in range(bad)] == ids[:bad]
        with pytest.raises(DamagedEpisodeError) as caught:
            next(loader)
        with pytest.raises(DamagedEpisodeError):
            next(loader)
        assert loader.state_dict()["step"] == bad % loader.steps_per_epoch
    error, key = caught.value, damaged.keys[EPISODE]
    assert error.shard == damaged.frame_members(EPISODE).path
    assert (error.episode, error.member) == (key, f"{key}.{FRAME:05d}.jpg")
    for part in (str(error.shard), key, error.member):
        assert part in str(error)


@pytest.mark.parametrize("kind", ["cut off", "missing", "wrong size"])
def test_other_damage_is_named_too(dataset, kind, tmp_path):
    members = dataset.frame_members(EPISODE)
    message = r"cut off: \d+ of"
    if kind == "cut off":
        os.truncate(members.path, int(members.offset[FRAME]) + 100)
    elif kind == "missing":
        members.path.unlink()
        message = "No such file"
    else:
        small = make_dataset(tmp_path / "small", 1, steps=1, size=1).frame_members(0)
        data = small.path.read_bytes()[int(small.offset[0]) :][: int(small.size[0])]
        assert len(data) <= members.size[FRAME]
        with open(members.path, "r+b") as file:
            file.seek(int(members.offset[FRAME]))
            file.write(data)
        message = r"\[1, 1, 3\], expected uint8\[8, 8, 3\]"
    with Loader(dataset, SPEC, **KEYWORDS) as loader, pytest.raises(DamagedEpisodeError, match=message):
        naive.take(loader, loader.steps_per_epoch)


def test_raw_frames_that_are_damaged_are_named(tmp_path):
    dataset = make_dataset(tmp_path, 2, steps=9, size=8, encoding="raw")
    damage_frame(dataset, 1)
    with (
        Loader(dataset, SPEC, **KEYWORDS) as loader,
        pytest.raises(DamagedEpisodeError, match=r"00005\.npy is damaged"),
    ):
        naive.take(loader, loader.steps_per_epoch)


def test_skipping_replaces_only_the_damaged_windows_counts_and_says_so(clean, damaged, caplog):
    steps = 2 * steps_of(clean)
    expected = naive.global_batches(clean, SPEC, steps, **KEYWORDS)
    with Loader(damaged, SPEC, config=SKIP, **KEYWORDS) as loader, caplog.at_level(logging.WARNING):
        got = [naive.items(next(loader)) for _ in range(steps)]
        metrics = loader.metrics()
    skipped = 0
    episodes = {i: damaged.read_episode(i) for i in range(len(damaged)) if i != EPISODE}
    for before, after in zip(naive.flat(expected), naive.flat(got), strict=True):
        assert not is_damaged(after.window)
        if is_damaged(before.window):
            skipped += 1
        else:
            assert after.window == before.window
        if after.episode in episodes:
            assert naive.is_right(after, episodes[after.episode], SPEC)
    assert skipped > 0
    assert metrics.skipped >= skipped
    assert metrics.damaged_episodes == 1
    [record] = caplog.records
    assert damaged.keys[EPISODE] in record.getMessage()


@pytest.mark.parametrize(("world_size", "threads"), [(1, 4), (2, 1), (3, 2), (6, 1)])
def test_what_replaces_a_window_depends_neither_on_ranks_nor_on_threads_nor_on_a_resume(damaged, world_size, threads):
    damage_frame(damaged, episode=1, frame=3)
    steps = 2 * steps_of(damaged)
    expected = naive.global_batches(damaged, SPEC, steps, config=LoaderConfig(1, 1, "skip"), **KEYWORDS)
    config = LoaderConfig(threads=threads, damaged="skip")
    got = naive.global_batches(damaged, SPEC, steps, world_size=world_size, config=config, **KEYWORDS)
    assert naive.same(got, expected)
    with Loader(damaged, SPEC, config=SKIP, **KEYWORDS) as loader:
        naive.take(loader, 5)
        state = loader.state_dict()
    rest = naive.global_batches(damaged, SPEC, steps - 5, state=state, world_size=world_size, config=config, **KEYWORDS)
    assert naive.same(rest, expected[5:])


def test_too_many_damaged_episodes_are_fatal(damaged):
    damage_frame(damaged, episode=1)
    for limit in (0, 1):
        config = LoaderConfig(damaged="skip", max_damaged=limit)
        with Loader(damaged, SPEC, config=config, **KEYWORDS) as loader:
            with pytest.raises(ValueError, match=f"{limit + 1} damaged episodes, over the limit of {limit}"):
                naive.take(loader, 2 * loader.steps_per_epoch)
            with pytest.raises(ValueError, match="over the limit"):
                next(loader)


def test_a_dataset_without_a_readable_frame_is_an_error_also_when_skipping(dataset):
    for path in (dataset.path / "shards").glob("*.tar"):
        os.truncate(path, 0)
    config = LoaderConfig(damaged="skip", max_damaged=1000)
    with (
        Loader(dataset, SPEC, config=config, **KEYWORDS) as loader,
        pytest.raises(DamagedEpisodeError, match="cut off"),
    ):
        next(loader)
