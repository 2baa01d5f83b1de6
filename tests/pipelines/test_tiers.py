import logging
import shutil

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines import memory as memory_module
from pipelines import resident, tiers
from pipelines.episodes import EpisodeTable
from pipelines.framecache import is_cached, map_frames
from pipelines.loader import Loader, LoaderConfig
from pipelines.tiers import choose_tier, open_source
from pipelines.windows import WindowSpec
from shards.dataset import Dataset
from tests.helpers import make_dataset
from tests.pipelines import naive

SPEC = WindowSpec(history=1, stack=2)
TIERS = ["memmap", "gpu"]


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEWM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Two datasets, one of an odd frame size that no wide integer divides."""
    path = tmp_path_factory.mktemp("datasets")
    return [make_dataset(path / str(size), 10, steps=(2, 14), size=size, seed=size) for size in (8, 7)]


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(TIERS),
    st.integers(0, 1),
    naive.specs,
    st.sampled_from([None, "train"]),
    st.integers(1, 8),
    st.integers(1, 4),
    st.integers(0, 3),
    st.booleans(),
    st.integers(0, 20),
)
def test_every_tier_gives_the_batches_of_streaming(
    datasets, tier, which, spec, split, world_size, threads, locality, with_state, stop
):
    dataset = datasets[which]
    total = len(naive.windows(dataset.lengths[dataset.indices(split)], spec))
    assume(total >= world_size)
    batch = max(world_size, total // 3)
    keywords = {"split": split, "batch_size": batch, "seed": 1, "locality": locality, "with_state": with_state}
    steps = stop % (2 * (total // batch)) + 2
    expected = naive.global_batches(dataset, spec, steps, **keywords)
    config = LoaderConfig(threads=threads, tier=tier)
    got = naive.global_batches(dataset, spec, steps, world_size=world_size, config=config, **keywords)
    assert naive.same(got, expected)

    # a state from one tier goes on on another
    cut = steps // 2
    with Loader(dataset, spec, config=config, **keywords) as loader:
        naive.take(loader, cut)
        state = loader.state_dict()
    assert naive.same(naive.global_batches(dataset, spec, steps - cut, state=state, **keywords), expected[cut:])


@pytest.mark.parametrize("tier", TIERS)
def test_joined_datasets_and_long_windows(tmp_path, tier):
    joined = [make_dataset(tmp_path / str(seed), 5, steps=(4, 9), size=8, seed=seed) for seed in (1, 2)]
    spec = WindowSpec(history=2, frame_skip=2, stack=2, stack_stride=2)
    keywords = {"split": None, "batch_size": 9, "seed": 0, "with_state": True}
    expected = naive.global_batches(joined, spec, 6, **keywords)
    assert {item.episode < 5 for item in naive.flat(expected)} == {True, False}
    assert naive.same(naive.global_batches(joined, spec, 6, config=LoaderConfig(tier=tier), **keywords), expected)


@pytest.mark.parametrize("tier", TIERS)
def test_the_tier_and_its_hits_are_reported(datasets, tier, caplog):
    dataset = datasets[0]
    with (
        caplog.at_level(logging.INFO),
        Loader(dataset, SPEC, batch_size=4, seed=0, config=LoaderConfig(tier=tier)) as loader,
    ):
        assert loader.metrics().tier == ""
        naive.take(loader, 3)
        metrics = loader.metrics()
    assert (metrics.tier, metrics.windows, metrics.cache_hits, metrics.bytes) == (tier, 12, 12 * 3, 0)
    assert metrics.frames == metrics.cache_hits
    assert metrics.windows_per_second == pytest.approx(12 / metrics.seconds)
    assert metrics.frames_per_second == pytest.approx(36 / metrics.seconds)
    assert 0 <= metrics.wait_share <= 1
    assert f"tier {tier}" in caplog.text


def test_resident_frames_come_from_the_cache_where_they_are(datasets, monkeypatch):
    dataset = datasets[0]
    map_frames(dataset, threads=1)
    expected = naive.global_batches(dataset, SPEC, 4, batch_size=4, seed=0)
    monkeypatch.setattr(resident, "decode_all", lambda *_, **__: pytest.fail("decoded again"))
    assert naive.same(
        naive.global_batches(dataset, SPEC, 4, batch_size=4, seed=0, config=LoaderConfig(tier="gpu")), expected
    )


def test_auto_takes_the_best_that_fits(datasets, monkeypatch):
    table = EpisodeTable(datasets[0], "train")
    split = int((table.lengths + 1).sum()) * 8 * 8 * 3
    whole = (int(datasets[0].lengths.sum()) + 10) * 8 * 8 * 3
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    memory = {"cpu": 2 * whole, "cuda": 4 * split}
    monkeypatch.setattr(tiers, "available_memory", lambda: memory["cpu"])
    monkeypatch.setattr(tiers, "available_device_memory", lambda _: memory["cuda"])
    assert choose_tier(table, cuda) == "gpu"
    assert choose_tier(table, cpu) == "memmap"
    memory["cuda"] -= 1
    assert choose_tier(table, cuda) == "memmap"
    memory["cpu"] -= 1
    assert choose_tier(table, cuda) == "stream"


@pytest.mark.parametrize(
    ("maximum", "current", "stat", "name"),
    [
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ],
)
def test_page_cache_that_a_control_group_counts_as_used_is_available(
    tmp_path, monkeypatch, maximum, current, stat, name
):
    (tmp_path / "memory").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 5000 kB\n")
    monkeypatch.setattr(memory_module, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory_module, "_CGROUP", tmp_path)
    assert memory_module.available_memory() == 5000 << 10
    (tmp_path / maximum).write_text("1000000\n")
    (tmp_path / current).write_text("900000\n")
    (tmp_path / stat).write_text(f"anon 200000\n{name} 600000\n")
    assert memory_module.available_memory() == 700_000
    (tmp_path / maximum).write_text("max\n")
    assert memory_module.available_memory() == 5000 << 10


def test_resident_columns_keep_no_copy_on_the_host(datasets):
    windows = resident.ResidentWindows(
        EpisodeTable(datasets[0], None), SPEC, torch.device("cpu"), with_state=True, threads=1
    )
    assert windows._columns.action.base is None
    assert windows._columns.state is None


def test_auto_streams_where_the_device_refuses_the_memory_and_a_flag_says_why(datasets, monkeypatch, caplog):
    def refuse(*_, **__):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(tiers, "choose_tier", lambda *_: "gpu")
    monkeypatch.setattr(resident.torch, "empty", refuse)
    table, device = EpisodeTable(datasets[0], None), torch.device("cpu")
    assert open_source("auto", table, SPEC, device, with_state=False, threads=1).tier == "stream"
    assert "streaming, because" in caplog.text
    with pytest.raises(ValueError, match="do not fit on cpu"):
        open_source("gpu", table, SPEC, device, with_state=False, threads=1)


def test_auto_streams_where_the_cache_has_no_room_and_a_flag_says_why(tmp_path, monkeypatch, caplog):
    dataset = make_dataset(tmp_path / "data", 4, steps=9, size=8, seed=9)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LEWM_CACHE", str(tmp_path / "file"))
    keywords = {"split": None, "batch_size": 4, "seed": 0}
    with Loader(dataset, SPEC, config=LoaderConfig(tier="auto"), **keywords) as loader:
        next(loader)
        assert loader.metrics().tier == "stream"
    assert "streaming, because" in caplog.text
    with (
        Loader(dataset, SPEC, config=LoaderConfig(tier="memmap"), **keywords) as loader,
        pytest.raises(ValueError, match="cannot be written"),
    ):
        next(loader)


@pytest.mark.parametrize("tier", ["auto", *TIERS])
def test_damaged_frames_are_streamed_so_that_they_are_skipped_as_ever(tmp_path, tier, caplog):
    clean = make_dataset(tmp_path / "clean", 6, steps=9, size=8, seed=11)
    shutil.copytree(clean.path, tmp_path / "copy")
    dataset = Dataset.open(tmp_path / "copy")
    members = dataset.frame_members(2)
    with members.path.open("r+b") as file:
        file.seek(int(members.offset[4]))
        file.write(bytes(int(members.size[4])))
    keywords = {"split": None, "batch_size": 5, "seed": 0}
    expected = naive.global_batches(dataset, SPEC, 8, config=LoaderConfig(damaged="skip"), **keywords)
    caplog.clear()
    with Loader(dataset, SPEC, config=LoaderConfig(damaged="skip", tier=tier), **keywords) as loader:
        got = [naive.items(next(loader)) for _ in range(8)]
        assert loader.metrics().skipped > 0
        assert loader.metrics().tier == "stream"
    assert naive.same(got, expected)
    assert "cannot be decoded ahead" in caplog.text
    assert not is_cached(dataset)


def test_a_batch_of_a_higher_tier_is_untouched_until_the_next_but_one(datasets):
    dataset = datasets[0]
    episodes = [dataset.read_episode(i) for i in range(len(dataset))]
    config = LoaderConfig(threads=3, prefetch=1, tier="gpu")
    with Loader(dataset, SPEC, split=None, batch_size=8, seed=0, config=config) as loader:
        held = [next(loader)]
        for _ in range(40):
            held.append(next(loader))
            for batch in held:
                for item in naive.items(batch):
                    assert naive.is_right(item, episodes[item.episode], SPEC)
            held.pop(0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("tier", ["memmap", "gpu"])
def test_tiers_on_cuda_equal_streaming_on_the_cpu(datasets, tier):
    dataset = datasets[0]
    keywords = {"split": None, "batch_size": 16, "seed": 0, "with_state": True}
    expected = naive.global_batches(dataset, SPEC, 30, **keywords)
    copies, busy = [], torch.randn(2048, 2048, device="cuda")
    config = LoaderConfig(threads=2, prefetch=1, tier=tier)
    with Loader(dataset, SPEC, device="cuda", config=config, **keywords) as loader:
        for _ in range(30):
            batch = next(loader)
            assert batch.frames.is_cuda
            for _ in range(20):
                busy = (busy @ busy).tanh()
            assert batch.state is not None
            copies.append((batch.frames.clone(), batch.action.clone(), batch.state.clone()))
    for (frames, action, state), batch in zip(copies, expected, strict=True):
        for row, item in enumerate(batch):
            assert torch.equal(frames[row].cpu(), torch.from_numpy(item.frames))
            assert torch.equal(action[row].cpu(), torch.from_numpy(item.action))
            assert torch.equal(state[row].cpu(), torch.from_numpy(item.state))
