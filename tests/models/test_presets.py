"""Presets: sizes, the page that documents them, and the memory that they train in."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.encoders import EncoderConfig
from models.footprint import training_bytes
from models.lewm import LeWM, LeWMConfig
from models.objective import directions
from models.presets import PRESETS, describe, preset

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"


def test_presets_have_the_documented_size():
    rows = {row.preset: row for row in describe(action_size=2)}
    assert rows.keys() == PRESETS.keys()
    assert rows["article"].parameters == pytest.approx(14.5e6, rel=0.01)
    assert rows["article"].latent_dim == 256
    assert 0.5e6 < rows["tiny"].parameters < 2e6
    assert rows["released"].parameters == rows["paper"].parameters == 18_034_478
    # Patches, linear layers and attention over 257 tokens in twelve blocks, and the head.
    tokens, layer = 257, 4 * 192 * 192 + 2 * 192 * 768
    multiply_adds = 256 * 588 * 192 + 12 * (tokens * layer + 2 * tokens**2 * 192) + 2 * 192 * 2048
    assert rows["released"].encode_mflop == pytest.approx(2 * multiply_adds / 1e6, rel=1e-6)
    page = PAGE.read_text()
    for row in rows.values():
        line = (
            f"| `{row.preset}` | {row.image} px x {row.stack} | {row.history} | {row.frame_skip} | {row.latent_dim} "
            f"| {row.encoder} | {row.predictor} | {row.regularizer} | {row.encoder_parameters:,} "
            f"| {row.predictor_parameters:,} | {row.parameters:,} | {row.encode_mflop:,.1f} "
            f"| {row.predict_mflop:,.2f} |"
        )
        assert line in page, line
    with pytest.raises(ValueError, match="tiny, article"):
        preset("huge")


def test_footprint_counts_weights_once_and_grows_with_the_batch():
    config = LeWMConfig(image_size=32, latent_dim=8, encoder=EncoderConfig(width=8, hidden=16))
    parameters = sum(parameter.numel() for parameter in LeWM(config, 1).parameters())
    small, large, larger = (training_bytes(config, 1, batch_size=size) for size in (64, 128, 192))
    assert larger - large == pytest.approx(large - small)
    # At least the pixels of both observations, which the first convolution keeps as float32.
    assert small > 16 * parameters + 64 * 2 * 9 * 32 * 32 * 4
    assert small < 16 * parameters + 40 * 64 * 2 * 9 * 32 * 32 * 4


PUBLISHED_BATCH = {"article": (256, torch.float32), "released": (128, torch.bfloat16)}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED_BATCH)
def test_presets_keep_less_than_22_gb(name):
    batch_size, dtype = PUBLISHED_BATCH[name]
    assert training_bytes(preset(name), 2, batch_size=batch_size, dtype=dtype) < 22e9


@pytest.mark.gpu
@pytest.mark.parametrize("name", PUBLISHED_BATCH)
def test_presets_train_in_less_than_22_gb(name):
    batch_size, dtype = PUBLISHED_BATCH[name]
    config, device = preset(name), torch.device("cuda")
    torch.cuda.reset_peak_memory_stats()
    model = LeWM(config, 2).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    shape = (batch_size, config.history + 1, config.stack, config.image_size, config.image_size, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    action = torch.randn(batch_size, config.history, 2 * config.frame_skip, device=device)
    drawn = directions(config.regularizer, config.latent_dim, seed=0, step=0, device=device, dtype=torch.float32)
    for _ in range(2):
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            losses = model(frames, action, drawn)
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert torch.cuda.max_memory_allocated() < 22e9


def test_paper_differs_from_released_in_the_weight_alone():
    paper, released = preset("paper"), preset("released")
    assert replace(paper, regularizer=released.regularizer) == released
    assert (released.regularizer.weight, paper.regularizer.weight) == (0.09, 0.1)
