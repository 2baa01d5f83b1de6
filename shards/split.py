"""Which episodes train, validate and test: a pure function of the key, fixed in the format.

No list of splits is stored anywhere that could disagree with it, and adding episodes to a dataset never moves one from
training to test. Splitting is by episode, never by window.
"""

import hashlib
from typing import Literal, get_args

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


def split_of(key: str) -> Split:
    """The split of an episode: u = first 8 bytes of sha256(key), big endian, / 2^64; < 0.8 train, < 0.9 validation."""
    u = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    if 10 * u < 8 * 2**64:  # in integers: a float would round at the border
        return "train"
    return "validation" if 10 * u < 9 * 2**64 else "test"
