"""The twin of DINO-WM has the parameters and FLOPs of the published shapes, and its fast rollout is its slow one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.dino_wm import DinoWM, DinoWMConfig
from models.flops import forward_flops

TINY = DinoWMConfig(
    image_size=28, width=12, encoder_depth=2, encoder_heads=2, action_width=4, depth=3, heads=2, head_dim=8, hidden=16
)
TOKENS, WIDTH, INNER, HIDDEN, DEPTH = 196, 394, 1024, 2048, 6
LINEAR = 3 * WIDTH * INNER + INNER * WIDTH + 2 * WIDTH * HIDDEN
"""Multiply-adds of a token in a layer of the predictor, attention apart."""


def full() -> DinoWM:
    """The published shapes, on a device that computes nothing."""
    with torch.device("meta"):
        return DinoWM(DinoWMConfig(), action_block=10).eval()


def tiny() -> DinoWM:
    torch.manual_seed(0)
    return DinoWM(TINY, action_block=6).eval().double()


def step_by_step(model: DinoWM, z_BTD: Tensor, block_BNK: Tensor) -> Tensor:
    """Imagine with `predict` over the last frames alone, as the published code does."""
    known, history = z_BTD.shape[1], model.config.history
    latents = list(z_BTD.unbind(dim=1))
    for end in range(known, block_BNK.shape[1] + 1):
        begin = max(0, end - history)
        window = torch.stack(latents[begin:], dim=1)
        latents.append(model.predict(window, block_BNK[:, begin:end])[:, -1])
    return torch.stack(latents[known:], dim=1)


def test_parameters_are_those_of_the_published_shapes():
    model = full()
    encoder = sum(parameter.numel() for parameter in model.encoder.parameters())
    # DINOv2's ViT-S/14 has 22,056,576: besides, positions of 37 x 37 patches, a mask token and two LayerScales a block.
    assert encoder == 22_056_576 - (37**2 - 14**2) * 384 - 384 - 12 * 2 * 384
    predictor = sum(
        parameter.numel() for name, parameter in model.named_parameters() if name.split(".")[0] in PREDICTOR
    )
    biases_and_norms = WIDTH + 4 * WIDTH + HIDDEN + WIDTH
    assert predictor == DEPTH * (LINEAR + biases_and_norms) + 2 * WIDTH + 3 * TOKENS * WIDTH == 19_624_820


PREDICTOR = {"positions", "blocks", "norm"}


def counted(run: Callable[[DinoWM, Tensor, Tensor], Tensor], horizon: int) -> int:
    model = full()
    with torch.device("meta"):
        z, plan = torch.empty(1, 1, model.config.latent_dim), torch.empty(1, horizon, 10)
        return forward_flops(lambda: run(model, z, plan))


def test_flops_as_published_are_the_closed_form():
    frames = (1, 2, 3, 3, 3)
    tokens, pairs = sum(TOKENS * t for t in frames), sum((TOKENS * t) ** 2 for t in frames)
    action = sum(2 * 10 * 10 * t for t in frames)
    flops = DEPTH * (2 * LINEAR * tokens + 4 * INNER * pairs) + action
    assert flops == pytest.approx(121e9, rel=0.01)
    assert counted(step_by_step, 5) == flops


def test_flops_of_the_fast_rollout_are_the_closed_form():
    # Frames 1 to 3 pass once each, and meet the keys before them; then the window slides and passes whole, twice.
    fresh, seen, slides = 3, 1 + 2 + 3, 2
    one = TOKENS**2
    layers = 2 * LINEAR * TOKENS * (fresh + 3 * slides) + 4 * INNER * one * (seen + (1 + 2 + 3) * slides)
    # The last layer gives keys and values of three frames, and all else of one.
    keys = 2 * 2 * WIDTH * INNER * TOKENS * 2
    last = 2 * LINEAR * TOKENS * (fresh + slides) + keys * slides + 4 * INNER * one * (seen + 3 * slides)
    action = 5 * 2 * 10 * 10
    assert counted(DinoWM.rollout, 5) == (DEPTH - 1) * layers + last + action


def test_flops_of_the_encoder_are_the_closed_form():
    model = full()
    with torch.device("meta"):
        frames = torch.empty(1, 196, 196, 3, dtype=torch.uint8)
        flops = forward_flops(lambda: model.encode(frames))
    layer = 4 * 384 * 384 + 2 * 384 * 1536
    assert flops == 2 * (TOKENS * 588 * 384 + 12 * (197 * layer + 2 * 197**2 * 384))


@pytest.mark.parametrize("known", [1, 2, 3])
@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_rollout_is_repeated_prediction(known, horizon):
    model = tiny()
    z_BTD = torch.randn(2, known, TINY.latent_dim, dtype=torch.float64)
    past_BPK, plan_BHK = torch.randn(2, known - 1 + horizon, 6, dtype=torch.float64).split([known - 1, horizon], dim=1)
    with torch.no_grad():
        slow = step_by_step(model, z_BTD, torch.cat([past_BPK, plan_BHK], dim=1))
        fast = model.rollout(z_BTD, plan_BHK, past_BPK if known > 1 else None)
        alone = model.rollout(z_BTD[1:], plan_BHK[1:], past_BPK[1:])
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
    torch.testing.assert_close(fast[1:], alone, rtol=0, atol=1e-12)
    if known == 1:
        with torch.no_grad():
            torch.testing.assert_close(model.rollout(z_BTD[:, 0], plan_BHK), fast, rtol=0, atol=0)


def test_a_frame_sees_itself_whole_and_nothing_later():
    model = tiny()
    z_BTD = torch.randn(1, 3, TINY.latent_dim, dtype=torch.float64)
    action_BTK = torch.randn(1, 3, 6, dtype=torch.float64)
    with torch.no_grad():
        before = model.predict(z_BTD, action_BTK)
        for frame in range(3):
            changed_z, changed_action = z_BTD.clone(), action_BTK.clone()
            changed_z[:, frame, -TINY.width :] += 1  # its last patch
            changed_action[:, frame] += 1
            for z, action in ((changed_z, action_BTK), (z_BTD, changed_action)):
                patches = (model.predict(z, action) - before).abs().unflatten(-1, (-1, TINY.width)).amax(dim=-1)[0]
                assert (patches[:frame] == 0).all()
                # The first patch too, which a token-causal mask would hide it from.
                assert (patches[frame:] > 1e-6).all()


def test_encode_gives_the_patches_in_one_vector_and_scales_pixels():
    model = tiny()
    frames = torch.randint(0, 256, (3, 28, 28, 3), dtype=torch.uint8)
    with torch.no_grad():
        z_ND = model.encode(frames)
        assert z_ND.shape == (3, TINY.latent_dim)
        grey = model.pixel_mean.round().to(torch.uint8).expand(1, 28, 28, 3)
        pixels = ((grey.double() - model.pixel_mean) / model.pixel_std).permute(0, 3, 1, 2)
        assert pixels.abs().max() < 0.01
        torch.testing.assert_close(model.encode(grey), model.encoder(pixels).flatten(1))
        # Patch 3 of the last frame alone moves that token most: latents are patch-major.
        lit = frames.clone()
        lit[2, 14:, 14:] = 255 - lit[2, 14:, 14:]
        moved = (model.encode(lit) - z_ND)[2].unflatten(0, (4, TINY.width)).norm(dim=-1)
        assert moved.argmax() == 3
        assert (model.encode(lit)[:2] == z_ND[:2]).all()
