"""BatchNorm over the global batch, on any device.

torch's SyncBatchNorm refuses CPU tensors, and statistics of a rank's share would make the loss depend on the number of
ranks. In a single process this is torch's own batch_norm; across ranks it is float32 sums and counts, summed
differentiably (`models.collectives`). Running statistics are the same on every rank, because they come from the same
sums.
"""

import torch
from torch import Tensor, nn

from models.collectives import global_sum, world_size
from models.precision import at_least_float32


class GlobalBatchNorm(nn.BatchNorm2d):
    """BatchNorm of (N, C) or (N, C, h, w) tensors with the statistics of all ranks' items."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (2, 4):
            raise ValueError(f"GlobalBatchNorm takes (N, C) or (N, C, h, w), not {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        return self._across_ranks(input)

    def _across_ranks(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        dims = [0, 2, 3][: x.dim() - 1]
        x_stat = at_least_float32(x)
        count = x_stat.new_full((1,), x.numel() // x.shape[1])
        mean_sums = global_sum(torch.cat([x_stat.sum(dims), count]))
        total = mean_sums[-1].detach()
        mean = mean_sums[:-1] / total
        view = (1, -1, 1, 1)[: x.dim()]
        # A second pass for the variance: E[x^2] - E[x]^2 loses float32 digits when the mean is large.
        var = global_sum((x_stat - mean.view(view)).square().sum(dims)) / total
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = var * total / (total - 1).clamp(min=1)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        y = (x_stat - mean.view(view)) * torch.rsqrt(var + self.eps).view(view)
        return (y * self.weight.view(view) + self.bias.view(view)).to(x.dtype)
