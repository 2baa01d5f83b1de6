import pytest
import torch

from pipelines import decode as decode_module
from pipelines.loader import Loader, LoaderConfig
from pipelines.staging import HostSlot
from pipelines.windows import WindowSpec
from tests.helpers import make_dataset
from tests.pipelines import naive

SPEC = WindowSpec(history=1, stack=3)


class TwinSlot(HostSlot):
    """A slot with a twin that only `send` fills, as on a device; notes the order of calls."""

    def __init__(self, shape):
        super().__init__(shape)
        self.calls = []
        self.twins = None

    def send(self):
        self.calls.append("send")
        frames, action, state = super().receive()
        assert state is not None
        self.twins = frames.clone(), action.clone(), state.clone()

    def receive(self):
        self.calls.append("receive")
        assert self.twins is not None
        return self.twins

    def release(self):
        self.calls.append("release")


def test_slots_are_sent_received_and_released_in_turn(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path, 6, steps=(5, 14), size=8)
    keywords = {"split": None, "batch_size": 7, "seed": 0, "with_state": True}
    expected = naive.global_batches(dataset, SPEC, 20, **keywords)
    slots = []

    def make_twins(shape, device, count):
        slots.extend(TwinSlot(shape) for _ in range(count))
        return slots

    monkeypatch.setattr(decode_module, "make_slots", make_twins)
    assert naive.same(naive.global_batches(dataset, SPEC, 20, **keywords), expected)
    for slot in slots:
        turns = len(slot.calls) // 3 + 1
        assert slot.calls == (["send", "receive", "release"] * turns)[: len(slot.calls)]
    assert sum(slot.calls.count("receive") for slot in slots) == 20


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_cuda
def test_cuda_batches_equal_cpu_batches_while_the_stream_is_busy(tmp_path):
    dataset = make_dataset(tmp_path, 10, steps=(5, 14), size=32)
    keywords = {"split": None, "batch_size": 16, "seed": 0, "with_state": True}
    expected = naive.global_batches(dataset, SPEC, 40, **keywords)
    sums, busy = [], torch.randn(2048, 2048, device="cuda")
    with Loader(dataset, SPEC, device="cuda", config=LoaderConfig(threads=4, prefetch=1), **keywords) as loader:
        for _ in range(40):
            batch = next(loader)
            assert batch.frames.is_cuda
            assert not batch.episode.is_cuda
            assert batch.state is not None
            for _ in range(20):
                busy = (busy @ busy).tanh()
            # queued behind a long computation: only the events keep the memory from being overwritten before it runs
            sums.append((batch.frames.clone(), batch.action.clone(), batch.state.clone()))
    for got, batch in zip(sums, expected, strict=True):
        for row, item in enumerate(batch):
            assert torch.equal(got[0][row].cpu(), torch.from_numpy(item.frames))
            assert torch.equal(got[1][row].cpu(), torch.from_numpy(item.action))
            assert item.state is not None
            assert torch.equal(got[2][row].cpu(), torch.from_numpy(item.state))
