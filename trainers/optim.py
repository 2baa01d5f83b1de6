"""What is optimised how: parameter groups, and the learning rate as a pure function of the step."""

import math
from typing import Any

import torch
from torch import nn

from trainers.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW (Loshchilov and Hutter 2019). Matrices and kernels decay; biases, gains and norms do not."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def learning_rate(config: OptimConfig, step: int, stop_step: int) -> float:
    """Linear warm-up, then a cosine from `lr` to `final_share * lr` over the schedule; level after it."""
    length = config.schedule_steps or stop_step
    progress = min(1.0, step / length)
    cosine = config.final_share + (1 - config.final_share) * 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * cosine * min(1.0, (step + 1) / max(1, config.warmup_steps))
