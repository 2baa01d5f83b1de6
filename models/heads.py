"""The projection heads behind the encoder and the predictor, and the encoder of action blocks.

The ViT ends in a LayerNorm, which holds every latent on a sphere and so keeps a regularizer from shaping the
distribution; an MLP with BatchNorm inside and nothing at its end frees it (LeWM, section 3). The predictor has one of
its own.
"""

from torch import Tensor, nn

from models.norm import GlobalBatchNorm


class ProjectionHead(nn.Module):
    """(..., fan_in) to (..., fan_out): linear, BatchNorm over all leading axes together, GELU, linear."""

    def __init__(self, fan_in: int, hidden: int, fan_out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(fan_in, hidden), GlobalBatchNorm(hidden), nn.GELU(), nn.Linear(hidden, fan_out)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)


class ActionEncoder(nn.Module):
    """Standardised action blocks (..., K) to embeddings (..., D), every block alone."""

    def __init__(self, action_block: int, latent_dim: int, smoothed: int = 10) -> None:
        super().__init__()
        # A pointwise convolution over time is a linear layer on every block.
        self.mix = nn.Linear(action_block, smoothed)
        self.expand = nn.Linear(smoothed, 4 * latent_dim)
        self.activation = nn.SiLU()
        self.contract = nn.Linear(4 * latent_dim, latent_dim)

    def forward(self, action: Tensor) -> Tensor:
        return self.contract(self.activation(self.expand(self.mix(action))))
