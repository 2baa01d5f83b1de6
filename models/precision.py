"""The one rule about precision: statistics and losses are float32 at least, whatever autocast does around them."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or untouched if it is float64."""
    return x if x.dtype == torch.float64 else x.float()
