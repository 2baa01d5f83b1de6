"""Counted FLOPs of a forward pass; a multiply-add is two."""

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def forward_flops(run: Callable[[], object]) -> int:
    """FLOPs of matrix products and convolutions in `run()`, attention included on every device."""
    # The counter does not know the CPU's fused attention, but it knows the products that it stands for.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
