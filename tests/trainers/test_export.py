"""What is registered takes any batch size, whatever the model is made of."""

import pytest
import torch

from models.encoders import EncoderConfig
from models.lewm import LeWM, LeWMConfig
from models.predictors import PredictorConfig
from trainers.export import WorldModel, example_inputs

ENCODERS = {
    "conv": EncoderConfig(kind="conv", width=4, hidden=16),
    "resnet18": EncoderConfig(kind="resnet18"),
    "vit": EncoderConfig(kind="vit", width=6, hidden=8, patch=8, depth=1, head_hidden=8),
}
PREDICTORS = {
    "mlp": PredictorConfig(hidden=16),
    "memory": PredictorConfig(hidden=16, memory=4),
    "transformer": PredictorConfig(kind="transformer", hidden=8, depth=1, heads=2, head_dim=4, head_hidden=8),
}


@pytest.mark.parametrize(
    ("encoder", "predictor"), [("conv", "mlp"), ("resnet18", "mlp"), ("vit", "transformer"), ("conv", "memory")]
)
def test_an_exported_model_takes_any_batch(encoder, predictor):
    config = LeWMConfig(
        image_size=16, latent_dim=8, stack=2, encoder=ENCODERS[encoder], predictor=PREDICTORS[predictor]
    )
    model = WorldModel(LeWM(config, action_size=2).eval())
    inputs = tuple(torch.from_numpy(array) for array in example_inputs(model.model))
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, inputs, dynamic_shapes=(batch, batch)).module()
    frames, action = (torch.from_numpy(array) for array in example_inputs(model.model, batch=5))
    with torch.no_grad():
        for found, expected in zip(program(frames, action), model(frames, action), strict=True):
            torch.testing.assert_close(found, expected)
