"""Observations are those that indexing gives, with and without a copy."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.presets import tiny
from trainers.learner import Observations
from trainers.rundir import window_spec


@given(
    history=st.integers(1, 4),
    frame_skip=st.integers(1, 6),
    stack=st.integers(1, 4),
    stack_stride=st.integers(1, 4),
    view=st.booleans(),
)
def test_observations_are_those_of_the_index(history, frame_skip, stack, stack_stride, view):
    config = replace(tiny(), history=history, frame_skip=frame_skip, stack=stack, stack_stride=stack_stride)
    index = torch.as_tensor(window_spec(config).observation_index)
    whole = torch.arange(3 * (int(index.max()) + 2) * 12).view(3, -1, 2, 2, 3)
    frames = whole[1:, 1:]  # neither the beginning of its memory nor all of it
    found = Observations(config, torch.device("cpu"), view=view)(frames)
    assert torch.equal(found, frames[:, index])


@pytest.mark.parametrize(("stride", "view"), [(2, True), (3, False)])
def test_even_stacks_are_a_view(stride, view):
    """A stack of every second frame, four decisions apart, is even; one of every third is not."""
    frames = torch.zeros(2, 6, 2, 2, 3)
    found = Observations(replace(tiny(), stack_stride=stride), torch.device("cpu"), view=True)(frames)
    assert (found.untyped_storage().data_ptr() == frames.untyped_storage().data_ptr()) is view
