"""The order of an epoch: its i-th window, as a pure function, without a list of windows.

Windows are numbered episode by episode; a pseudo-random permutation of those numbers, keyed by (digest, window spec,
split, seed, epoch), is the epoch's order. The permutation is a Feistel network over Z_a x Z_b with a = ceil(sqrt n) and
b = ceil(n / a) (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, generalised Feistel), whose domain
a*b exceeds n by less than a; the few numbers that land outside walk on until they are inside. So any position costs
the same: six rounds of integer arithmetic and one binary search over the cumulative window counts. Memory is 8 bytes
an episode, whatever the number of windows. Resuming is only a matter of knowing the position.
"""

import hashlib
import json
import math
from dataclasses import asdict

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


class WindowOrder:
    """Which window comes at each position of each epoch.

    `lengths` (E,) are the steps of the split's episodes in canonical order; `total` counts their windows.
    """

    def __init__(self, lengths: np.ndarray, spec: WindowSpec, *, digest: str, split: str, seed: int) -> None:
        self.spec = spec
        self._ends = np.cumsum(spec.counts(lengths))
        self.total = int(self._ends[-1]) if len(self._ends) else 0
        identity = json.dumps(["lewm order 1", digest, asdict(spec), split, seed], sort_keys=True)
        self._hash = hashlib.blake2b(identity.encode())

    def window(self, epoch: int, positions: np.ndarray, attempt: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Episode (B,), counted within `lengths`, and start t0 (B,) of the windows at `positions` (B,) of an epoch.

        `attempt` > 0 gives the window that stands in for the one at that position when attempts before it turned out
        damaged: the same position of an independent permutation, so that it depends on nothing else.
        """
        key = self._hash.copy()
        key.update(b"%d,%d" % (epoch, attempt))
        number = Permutation(self.total, key.digest())(positions)
        episode = np.searchsorted(self._ends, number, side="right")
        before = np.where(episode > 0, self._ends[episode - 1], 0)
        return episode, number - before + self.spec.first_start
