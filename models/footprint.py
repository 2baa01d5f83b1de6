"""Memory that training takes, computed without the device: what a batch keeps for the backward pass, and the weights.

autograd says which tensors it keeps (`saved_tensors_hooks`); each storage counts once, parameters not at all. One small
batch is run on the CPU and scaled, for activations grow in proportion to the batch. Weights, gradients and AdamW's two
moments are 16 bytes a parameter. The transient part (workspaces, the gradients of activations on their way) is not in
it, so a measured peak lies somewhat above.
"""

import torch
from torch import Tensor

from models.lewm import LeWM, LeWMConfig
from models.objective import directions


def training_bytes(
    config: LeWMConfig, action_size: int, *, batch_size: int, dtype: torch.dtype = torch.float32, sample: int = 2
) -> float:
    """Bytes of a training step on `batch_size` windows under autocast to `dtype`.

    The line through batches of `sample` and twice as many windows is followed to `batch_size`: its constant part are
    weights that autocast has cast.
    """
    model = LeWM(config, action_size)
    small, large = (_kept_bytes(model, count, dtype) for count in (sample, 2 * sample))
    each = (large - small) / sample
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return 16.0 * parameters + small + each * (batch_size - sample)


def _kept_bytes(model: LeWM, batch_size: int, dtype: torch.dtype) -> int:
    """Bytes that autograd keeps of one forward pass on `batch_size` windows, parameters apart."""
    config, size = model.config, model.config.image_size
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            # A freed storage's address could be given to another tensor and hide it.
            alive.append(tensor)
        return tensor

    frames = torch.randint(0, 256, (batch_size, config.history + 1, config.stack, size, size, 3), dtype=torch.uint8)
    action = torch.randn(batch_size, config.history, config.frame_skip * model.action_size)
    drawn = directions(
        config.regularizer, config.latent_dim, seed=0, step=0, device=torch.device("cpu"), dtype=torch.float32
    )
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
    ):
        model(frames, action, drawn)
    return sum(kept.values())
