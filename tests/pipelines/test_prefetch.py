import threading

import pytest

from pipelines.prefetch import Prefetcher


class Slot(list):
    finished = 0


def fill_number(number, slot, begin, end):
    for row in range(begin, end):
        slot[row] = (number, row)
    return number, begin, end


def finish(slot):
    slot.finished += 1


def make(fill=fill_number, finish=finish, *, slots=3, rows=10, threads=2, first=0):
    return Prefetcher(
        [Slot([None] * rows) for _ in range(slots)], fill, finish, first=first, rows=rows, threads=threads
    )


@pytest.fixture
def started():
    """Prefetchers that end with the test."""
    made = []
    yield made
    for prefetcher in made:
        prefetcher.stop()
        prefetcher.join()


@pytest.mark.parametrize(("rows", "threads"), [(1, 1), (1, 4), (10, 1), (10, 3), (100, 2), (7, 8)])
def test_batches_come_in_order_and_whole(started, rows, threads):
    prefetcher = make(rows=rows, threads=threads, first=5)
    started.append(prefetcher)
    for number in range(5, 30):
        got, slot, reports = prefetcher.take()
        assert got == number
        assert slot == [(number, row) for row in range(rows)]
        assert [report[1:] for report in reports] == sorted(report[1:] for report in reports)
        assert sum(end - begin for _, begin, end in reports) == rows
        assert slot.finished == 1
        slot.finished = 0
        prefetcher.give_back(slot)


def test_no_more_batches_are_opened_than_there_are_slots(started):
    filled, full = set(), threading.Event()

    def fill(number, slot, begin, end):
        filled.add(number)
        if number == 2 and end == 10:
            full.set()

    prefetcher = make(fill, slots=3)
    started.append(prefetcher)
    assert full.wait(60)
    first = prefetcher.take()[1]
    prefetcher.take()
    assert filled == {0, 1, 2}
    prefetcher.give_back(first)
    prefetcher.take()
    assert prefetcher.take()[0] == 3
    assert filled == {0, 1, 2, 3}


def test_an_error_comes_when_its_batch_does_and_stays(started):
    def fill(number, slot, begin, end):
        if number == 2 and end > 4:
            raise ValueError(f"row {begin} of batch {number}")

    prefetcher = make(fill, slots=4, rows=8, threads=4)
    started.append(prefetcher)
    assert [prefetcher.take()[0] for _ in range(2)] == [0, 1]
    for _ in range(2):
        with pytest.raises(ValueError, match="row 4 of batch 2"):
            prefetcher.take()


def test_an_error_of_finish_reaches_the_consumer_too(started):
    def broken(slot):
        raise MemoryError("no room on the device")

    prefetcher = make(finish=broken)
    started.append(prefetcher)
    with pytest.raises(MemoryError, match="no room"):
        prefetcher.take()


def test_stop_ends_threads_that_sleep_and_a_consumer_that_waits():
    blocked, entered = threading.Event(), threading.Event()

    def fill(number, slot, begin, end):
        entered.set()
        blocked.wait(60)

    prefetcher, raised = make(fill, threads=1), []

    def consume():
        try:
            prefetcher.take()
        except RuntimeError as error:
            raised.append(str(error))

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert entered.wait(60)
    prefetcher.stop()
    consumer.join(60)
    assert raised == ["the prefetcher was stopped"]
    blocked.set()
    prefetcher.join()
    idle = make()
    idle.take()
    idle.stop()
    idle.join()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode-")]
