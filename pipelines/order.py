"""The order of an epoch: its i-th window, as a pure function, without a list of windows.

Windows are numbered episode by episode; a pseudo-random permutation of those numbers, keyed by (digest, window spec,
split, seed, epoch), is the epoch's order. The permutation is a Feistel network over Z_a x Z_b with a = ceil(sqrt n) and
b = ceil(n / a) (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, generalised Feistel), whose domain
a*b exceeds n by less than a; the few numbers that land outside walk on until they are inside. So any position costs
the same: six rounds of integer arithmetic and one binary search over the cumulative window counts. Memory is 8 bytes
an episode, whatever the number of windows. Resuming is only a matter of knowing the position.

With a locality of L shards, for data that is fetched shard by shard, windows are numbered shard by shard instead. An
epoch permutes the shards, takes them in groups of L, and permutes the windows within each group: so it visits a shard
only while its group is at hand, and a batch mixes the windows of about L shards. That order is a function of the
episodes' places in shards too. It costs another 24 bytes a shard, and one more binary search.
"""

import hashlib
import json
import math
from dataclasses import asdict
from functools import lru_cache

import numpy as np

from pipelines.windows import WindowSpec

_ROUNDS = 6
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SHIFT = np.uint64(32)


class Permutation:
    """A pseudo-random bijection of 0..n-1 chosen by `key`; constant memory, vectorised."""

    def __init__(self, n: int, key: bytes) -> None:
        if not 1 <= n < 2**62:
            raise ValueError(f"a permutation of {n} items; possible are 1 to 2**62 - 1")
        self.n = n
        rows = math.isqrt(n - 1) + 1
        self._n, self._rows, self._columns = np.uint64(n), np.uint64(rows), np.uint64(-(-n // rows))
        self._keys = np.frombuffer(hashlib.blake2b(key, digest_size=8 * _ROUNDS).digest(), "<u8")

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Where `positions` (any shape, int64, each in 0..n-1) go: int64, same shape."""
        positions = np.asarray(positions, np.int64)
        if positions.size and not (positions.min() >= 0 and positions.max() < self.n):
            raise ValueError(f"positions {positions.min()}..{positions.max()} are not all in 0..{self.n - 1}")
        values = self._encipher(positions.reshape(-1).astype(np.uint64))
        while (outside := np.flatnonzero(values >= self._n)).size:
            values[outside] = self._encipher(values[outside])
        return values.astype(np.int64).reshape(positions.shape)

    def _encipher(self, values: np.ndarray) -> np.ndarray:
        left, right = np.divmod(values, self._columns)
        for first, second in self._keys.reshape(-1, 2):
            left = (left + _mix(right ^ first) % self._rows) % self._rows
            right = (right + _mix(left ^ second) % self._columns) % self._columns
        return left * self._columns + right


def _mix(x: np.ndarray) -> np.ndarray:
    """A 64-bit finaliser in the manner of splitmix64: every input bit flips every output bit half of the time."""
    x = (x ^ (x >> _SHIFT)) * _MIX_1
    x = (x ^ (x >> _SHIFT)) * _MIX_2
    return x ^ (x >> _SHIFT)


class GroupedPermutation:
    """A pseudo-random bijection of 0..n-1 that keeps company: `counts` (S,) are the items of S consecutive blocks, of
    which each run of `group` consecutive positions' blocks is shuffled as one. Memory is 24 bytes a block."""

    def __init__(self, counts: np.ndarray, group: int, key: bytes) -> None:
        self._key, self._blocks = key, Permutation(len(counts), key)(np.arange(len(counts)))
        self._group = group
        here = counts[self._blocks]
        self._ends = np.cumsum(here)
        # What to add to a number in the permuted blocks to get its number in the blocks as given.
        self._shift = (np.cumsum(counts) - counts)[self._blocks] - (self._ends - here)
        self._group_ends = np.append(self._ends[group - 1 : -1 : group], self._ends[-1])

    def __len__(self) -> int:
        """Number of groups."""
        return len(self._group_ends)

    def group(self, position: int) -> int:
        """The group that a position is in."""
        return int(np.searchsorted(self._group_ends, position, side="right"))

    def blocks(self, group: int) -> np.ndarray:
        """The blocks of a group, int64."""
        return self._blocks[group * self._group : (group + 1) * self._group]

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Where `positions` (B,), int64, go: int64 (B,)."""
        numbers = np.empty_like(positions)
        groups = np.searchsorted(self._group_ends, positions, side="right")
        for group in np.unique(groups):
            begin, end = (int(self._group_ends[g]) if g >= 0 else 0 for g in (group - 1, group))
            here = groups == group
            numbers[here] = begin + Permutation(end - begin, self._key + b",%d" % group)(positions[here] - begin)
        return numbers + self._shift[np.searchsorted(self._ends, numbers, side="right")]


class WindowOrder:
    """Which window comes at each position of each epoch.

    `lengths` (E,) are the steps of the split's episodes in canonical order; `total` counts their windows. With
    `locality` > 0 `shards` (E,) says in which shard each episode is.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        spec: WindowSpec,
        *,
        digest: str,
        split: str,
        seed: int,
        locality: int = 0,
        shards: np.ndarray | None = None,
    ) -> None:
        self.spec = spec
        counts = spec.counts(lengths)
        self._episodes = self._blocks = None
        identity: list[object] = ["lewm order 1", digest, asdict(spec), split, seed]
        if locality:
            assert shards is not None
            self._episodes = np.argsort(shards, kind="stable")
            of_shards = np.bincount(shards, counts).astype(np.int64)
            self._blocks, self._shards = of_shards[of_shards > 0], np.flatnonzero(of_shards)
            counts = counts[self._episodes]
            identity.append(locality)
        self._locality = locality
        self._ends = np.cumsum(counts)
        self.total = int(self._ends[-1]) if len(self._ends) else 0
        self._hash = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode())
        self._permutation = lru_cache(4)(self._make_permutation)

    def window(self, epoch: int, positions: np.ndarray, attempt: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Episode (B,), counted within `lengths`, and start t0 (B,) of the windows at `positions` (B,) of an epoch.

        `attempt` > 0 gives the window that stands in for the one at that position when attempts before it turned out
        damaged: the same position of an independent permutation, so that it depends on nothing else.
        """
        number = self._permutation(epoch, attempt)(positions)
        at = np.searchsorted(self._ends, number, side="right")
        before = np.where(at > 0, self._ends[at - 1], 0)
        episode = at if self._episodes is None else self._episodes[at]
        return episode, number - before + self.spec.first_start

    def group(self, epoch: int, position: int) -> tuple[int, int]:
        """With locality: the group of shards that a position of an epoch is in, and how many groups there are."""
        permutation = self._permutation(epoch, 0)
        assert isinstance(permutation, GroupedPermutation)
        return permutation.group(position), len(permutation)

    def shards_of(self, epoch: int, group: int) -> np.ndarray:
        """With locality: the shards of a group of an epoch, int64, numbered as `shards`."""
        permutation = self._permutation(epoch, 0)
        assert isinstance(permutation, GroupedPermutation)
        return self._shards[permutation.blocks(group)]

    def _make_permutation(self, epoch: int, attempt: int) -> Permutation | GroupedPermutation:
        key = self._hash.copy()
        key.update(b"%d,%d" % (epoch, attempt))
        if self._blocks is None:
            return Permutation(self.total, key.digest())
        return GroupedPermutation(self._blocks, self._locality, key.digest())
