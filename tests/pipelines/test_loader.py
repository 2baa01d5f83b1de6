import gc
import json
import os
import signal
import subprocess
import sys
import threading
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines.loader import Loader, LoaderConfig
from pipelines.windows import WindowSpec
from tests.helpers import make_dataset
from tests.pipelines import naive

SPEC = WindowSpec(history=1, stack=2)


@pytest.fixture(scope="module")
def dataset_of(tmp_path_factory):
    """Datasets of 10 episodes of random lengths, by seed."""

    @lru_cache
    def make(seed):
        return make_dataset(tmp_path_factory.mktemp("dataset"), 10, steps=(2, 14), size=8, seed=seed)

    return make


@pytest.fixture(scope="module")
def dataset(dataset_of):
    return dataset_of(0)


def decode_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode-")]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 3), naive.specs, st.sampled_from([None, "train"]), st.integers(1, 12), st.integers(0, 9))
def test_every_window_comes_once_an_epoch_but_for_those_that_are_dropped(dataset_of, seed, spec, split, batch, order):
    dataset = dataset_of(seed)
    numbers = dataset.indices(split)
    expected = {(int(numbers[e]), t0) for e, t0 in naive.windows(dataset.lengths[numbers], spec)}
    if len(expected) < batch:
        with pytest.raises(ValueError, match=f"{len(expected)} windows"):
            Loader(dataset, spec, split=split, batch_size=batch, seed=order)
        return
    with Loader(dataset, spec, split=split, batch_size=batch, seed=order) as loader:
        assert loader.steps_per_epoch == len(expected) // batch
        left_out = []
        for epoch in range(2):
            batches = [next(loader) for _ in range(loader.steps_per_epoch)]
            assert [(b.epoch, b.step) for b in batches] == [(epoch, step) for step in range(loader.steps_per_epoch)]
            seen = [w for b in batches for w in zip(b.episode.tolist(), b.start.tolist(), strict=True)]
            assert len(seen) == len(set(seen)) == len(batches) * batch
            assert set(seen) <= expected
            left_out.append(expected - set(seen))
        assert loader.dropped_per_epoch == len(left_out[0]) == len(left_out[1])
        assert loader.metrics().dropped == sum(map(len, left_out))


def test_what_is_dropped_differs_by_epoch(dataset):
    total = len(naive.windows(dataset.lengths, SPEC))
    batch = total // 2 + 1
    with Loader(dataset, SPEC, split=None, batch_size=batch, seed=0) as loader:
        epochs = [frozenset(item.window for item in naive.items(next(loader))) for _ in range(3)]
    assert len(set(epochs)) == 3


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 3),
    naive.specs,
    st.integers(1, 8),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 40),
    st.integers(0, 3),
    st.data(),
)
def test_global_batches_depend_neither_on_ranks_nor_on_threads_nor_on_a_resume(
    dataset_of, seed, spec, world_size, threads, prefetch, stop, locality, data
):
    dataset = dataset_of(seed)
    total = len(naive.windows(dataset.lengths, spec))
    assume(total >= world_size)
    batch = data.draw(st.integers(world_size, min(total, 24)))
    common = {"split": None, "batch_size": batch, "seed": seed, "locality": locality}
    steps = stop % (2 * (total // batch)) + 2
    expected = naive.global_batches(dataset, spec, steps, config=LoaderConfig(threads=1, prefetch=1), **common)
    config = LoaderConfig(threads=threads, prefetch=prefetch)
    ranks = {**common, "world_size": world_size, "config": config}
    assert naive.same(naive.global_batches(dataset, spec, steps, **ranks), expected)

    cut = steps // 2
    with Loader(dataset, spec, config=config, **common) as loader:
        naive.take(loader, cut)
        state = json.loads(json.dumps(loader.state_dict()))
    assert (state["epoch"], state["step"]) == divmod(cut, total // batch)
    assert naive.same(naive.global_batches(dataset, spec, steps - cut, state=state, **ranks), expected[cut:])


@pytest.mark.parametrize(("world_size", "batch"), [(1, 5), (3, 8), (5, 5), (8, 13)])
def test_ranks_take_their_slices_and_the_same_number_of_steps(dataset, world_size, batch):
    whole = naive.window_ids(naive.global_batches(dataset, SPEC, 1, split=None, batch_size=batch, seed=1))[0]
    lengths = set()
    for r in range(world_size):
        with Loader(dataset, SPEC, split=None, batch_size=batch, seed=1, rank=r, world_size=world_size) as loader:
            lengths.add(loader.steps_per_epoch)
            windows = [item.window for item in naive.items(next(loader))]
        assert windows == whole[r * batch // world_size : (r + 1) * batch // world_size]
    assert len(lengths) == 1


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 3), naive.specs, st.booleans())
def test_windows_are_those_of_the_full_decode(dataset_of, seed, spec, with_state):
    dataset = dataset_of(seed)
    total = len(naive.windows(dataset.lengths, spec))
    assume(total > 0)
    [batch] = naive.global_batches(dataset, spec, 1, split=None, batch_size=total, seed=0, with_state=with_state)
    assert len({item.window for item in batch}) == total
    episodes = [dataset.read_episode(i) for i in range(len(dataset))]
    for item in batch:
        assert (item.state is not None) == with_state
        assert naive.is_right(item, episodes[item.episode], spec)


def test_raw_frames_are_exact(tmp_path):
    dataset = make_dataset(tmp_path, 4, steps=6, size=8, encoding="raw")
    for item in naive.global_batches(dataset, SPEC, 1, split=None, batch_size=12, seed=0)[0]:
        assert naive.is_right(item, dataset.read_episode(item.episode), SPEC)


def test_shapes_and_types(dataset):
    spec = WindowSpec(history=2, frame_skip=2, stack=2)
    with Loader(dataset, spec, split=None, batch_size=5, seed=0, with_state=True) as loader:
        batch = next(loader)
        assert (batch.frames.shape, str(batch.frames.dtype)) == ((5, 6, 8, 8, 3), "torch.uint8")
        assert (batch.action.shape, str(batch.action.dtype)) == ((5, 2, 4), "torch.float32")
        assert batch.state is not None
        assert (batch.state.shape, str(batch.state.dtype)) == ((5, 3, 3), "torch.float32")
        assert {str(batch.episode.dtype), str(batch.start.dtype)} == {"torch.int64"}
        metrics = loader.metrics()
    assert (metrics.windows, metrics.frames) == (5, 30)
    expected = 0
    for e, t0 in zip(batch.episode.tolist(), batch.start.tolist(), strict=True):
        expected += int(dataset.frame_members(e).size[t0 + spec.unique_offsets].sum())
    assert metrics.bytes == expected
    assert metrics.wait_seconds > 0
    assert 0 <= metrics.wait_share <= 1


def test_a_batch_is_untouched_until_the_next_but_one_is_asked_for(dataset):
    episodes = [dataset.read_episode(i) for i in range(len(dataset))]
    config = LoaderConfig(threads=4, prefetch=1)
    with Loader(dataset, SPEC, split=None, batch_size=8, seed=0, config=config) as loader:
        held, memory = [next(loader)], set()
        for _ in range(60):
            held.append(next(loader))
            for batch in held:
                memory.add(batch.frames.data_ptr())
                for item in naive.items(batch):
                    assert naive.is_right(item, episodes[item.episode], SPEC)
            held.pop(0)
    assert len(memory) == config.prefetch + 2


def test_state_counts_batches_delivered_and_can_be_loaded_at_any_time(dataset):
    keywords = {"split": None, "batch_size": 7, "seed": 0}
    expected = naive.window_ids(naive.global_batches(dataset, SPEC, 12, **keywords))
    with Loader(dataset, SPEC, config=LoaderConfig(prefetch=4), **keywords) as loader:
        start = loader.state_dict()
        states = []
        for _ in range(9):
            states.append(loader.state_dict())
            next(loader)
        for at in (5, 0, 8):
            loader.load_state_dict(states[at])
            assert loader.state_dict() == states[at]
            assert [[i.window for i in naive.items(next(loader))] for _ in range(3)] == expected[at : at + 3]
        loader.load_state_dict(start)
        assert [i.window for i in naive.items(next(loader))] == expected[0]
    far = {**start, "epoch": 10**6, "step": 1}
    with Loader(dataset, SPEC, **keywords) as loader:
        loader.load_state_dict(far)
        batch = next(loader)
        assert (batch.epoch, batch.step) == (10**6, 1)


def test_a_state_of_another_run_is_refused_and_the_difference_shown(dataset_of, dataset):
    keywords = {"split": "train", "batch_size": 4, "seed": 0}
    with Loader(dataset, SPEC, **keywords) as loader:
        state = loader.state_dict()
        for change in ({"epoch": -1}, {"step": loader.steps_per_epoch}, {"step": 1.0}):
            with pytest.raises(ValueError, match="do not exist"):
                loader.load_state_dict({**state, **change})
        with pytest.raises(ValueError, match="digest, epoch missing"):
            loader.load_state_dict({k: v for k, v in state.items() if k not in ("digest", "epoch")})
    others = {
        "seed is 0 there and 1 here": Loader(dataset, SPEC, **{**keywords, "seed": 1}),
        "batch_size is 4 there and 5 here": Loader(dataset, SPEC, **{**keywords, "batch_size": 5}),
        "split is 'train' there and None here": Loader(dataset, SPEC, **{**keywords, "split": None}),
        "'stack': 2.*'stack': 1": Loader(dataset, WindowSpec(history=1), **keywords),
        f"digest is '{dataset.digest}' there": Loader(dataset_of(1), SPEC, **keywords),
    }
    for message, other in others.items():
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)


def test_a_state_with_locality_is_refused_where_other_episodes_share_a_shard(tmp_path):
    keywords = {"batch_size": 4, "seed": 0, "split": None}
    ours, same, other = (
        make_dataset(tmp_path / name, 6, steps=9, size=8, shard_episodes=episodes)
        for name, episodes in (("ours", 2), ("same", 2), ("other", 3))
    )
    assert ours.digest == same.digest == other.digest
    state = Loader(ours, SPEC, locality=2, **keywords).state_dict()
    Loader(same, SPEC, locality=2, **keywords).load_state_dict(state)
    with pytest.raises(ValueError, match="layout is"):
        Loader(other, SPEC, locality=2, **keywords).load_state_dict(state)
    with pytest.raises(ValueError, match="locality is 2 there and 1 here"):
        Loader(ours, SPEC, locality=1, **keywords).load_state_dict(state)
    state = Loader(ours, SPEC, **keywords).state_dict()
    Loader(other, SPEC, **keywords).load_state_dict(state)
    with pytest.raises(ValueError, match="locality missing"):
        Loader(other, SPEC, **keywords).load_state_dict({k: v for k, v in state.items() if k != "locality"})
    with pytest.raises(ValueError, match="locality -1"):
        Loader(ours, SPEC, locality=-1, **keywords)


def test_joined_datasets_are_one_list_of_episodes(dataset_of):
    datasets = [dataset_of(0), dataset_of(1)]
    lengths = np.concatenate([dataset.lengths for dataset in datasets])
    expected = naive.windows(lengths, SPEC)
    [batch] = naive.global_batches(datasets, SPEC, 1, split=None, batch_size=len(expected), seed=0, with_state=True)
    assert sorted(item.window for item in batch) == expected
    for item in batch:
        first = item.episode < len(datasets[0])
        dataset, number = (datasets[0], item.episode) if first else (datasets[1], item.episode - len(datasets[0]))
        assert naive.is_right(item, dataset.read_episode(number), SPEC)
    digests = {
        Loader(d, SPEC, batch_size=1, seed=0).state_dict()["digest"] for d in (datasets, datasets[::-1], datasets[0])
    }
    assert len(digests) == 3


def test_datasets_that_do_not_fit_together_are_refused(dataset, tmp_path):
    larger = make_dataset(tmp_path / "larger", 3, size=16, seed=7)
    more_actions = make_dataset(tmp_path / "actions", 3, size=8, seed=7, action_size=3)
    for other, difference in ((larger, "size is 8 and 16"), (more_actions, "action_size is 2 and 3")):
        with pytest.raises(ValueError, match=difference):
            Loader([dataset, other], SPEC, batch_size=4, seed=0)
    with pytest.raises(ValueError, match="both have episode"):
        Loader([dataset, dataset], SPEC, batch_size=4, seed=0)
    with pytest.raises(ValueError, match="at least one"):
        Loader([], SPEC, batch_size=4, seed=0)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"batch_size": 10_000}, "the train split has .* fewer than a batch of 10000"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"batch_size": 3, "world_size": 4}, "a global batch of 3"),
        ({"batch_size": 0}, "a global batch of 0"),
        ({"split": "all"}, "split 'all'"),
    ],
)
def test_impossible_arguments_are_refused(dataset, keywords, message):
    with pytest.raises(ValueError, match=message):
        Loader(dataset, SPEC, **{"batch_size": 4, "seed": 0, **keywords})


@pytest.mark.parametrize(
    ("field", "value"),
    [("threads", 0), ("prefetch", 0), ("max_damaged", -1), ("damaged", "ignore"), ("tier", "disk")],
)
def test_impossible_configs_are_refused(field, value):
    with pytest.raises(ValueError, match=f"loader {field} is {value!r}"):
        LoaderConfig(**{field: value})


def test_an_unknown_device_is_refused(dataset):
    with (
        Loader(dataset, SPEC, split=None, batch_size=4, seed=0, device="meta") as loader,
        pytest.raises(ValueError, match="device 'meta'"),
    ):
        next(loader)


def test_close_ends_threads_and_files_and_keeps_delivered_batches(dataset):
    loader = Loader(dataset, SPEC, split=None, batch_size=4, seed=0, config=LoaderConfig(threads=3))
    assert decode_threads() == []
    batch = next(loader)
    assert len(decode_threads()) == 3
    before = batch.frames.clone()
    loader.close()
    loader.close()
    assert decode_threads() == []
    assert batch.frames.equal(before)
    assert loader.metrics().windows == 4
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)
    gc.collect()
    open_shards = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert not [path for path in open_shards if path.startswith(str(dataset.path))]


def test_a_dropped_loader_ends_its_threads(dataset):
    loader = Loader(dataset, SPEC, split=None, batch_size=4, seed=0)
    next(loader)
    threads = decode_threads()
    assert threads
    del loader
    gc.collect()
    for thread in threads:
        thread.join(60)
    assert decode_threads() == []


SCRIPT = """
import sys
from pipelines.loader import Loader
from pipelines.windows import WindowSpec
from shards.dataset import Dataset
loader = Loader(Dataset.open(sys.argv[1]), WindowSpec(1), split=None, batch_size=8, seed=0)
next(loader)
print("running", flush=True)
if sys.argv[2] == "wait":
    with loader:
        for batch in loader: pass
"""


@pytest.mark.parametrize(("mode", "code"), [("leave", 0), ("wait", -signal.SIGINT)])
def test_neither_an_exit_without_close_nor_an_interrupt_hangs(dataset, mode, code):
    command = [sys.executable, "-c", SCRIPT, str(dataset.path), mode]
    root = Path(__file__).parents[2]
    # A shell's background job ignores Ctrl-C, and so would everything that the test suite starts there.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "running\n"
            if mode == "wait":
                process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == code, errors
