import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.windows import WindowSpec
from tests.pipelines import naive


@settings(deadline=None)
@given(naive.specs, st.lists(st.integers(0, 25), max_size=8))
def test_starts_are_those_of_the_definition(spec, lengths):
    for steps in lengths:
        expected = naive.starts(steps, spec)
        assert spec.count(steps) == len(expected)
        assert expected == list(range(spec.first_start, spec.first_start + len(expected)))
    assert spec.counts(np.array(lengths, np.int64)).tolist() == [spec.count(steps) for steps in lengths]


@settings(deadline=None)
@given(naive.specs)
def test_frames_and_actions_are_those_of_the_definition(spec):
    t0 = spec.first_start + 3
    expected = naive.observation_frames(spec, t0)
    offsets = spec.unique_offsets
    assert offsets.tolist() == sorted({t - t0 for observation in expected for t in observation})
    assert (t0 + offsets[spec.observation_index]).tolist() == expected
    assert spec.observation_index.shape == (spec.history + 1, spec.stack)
    assert (t0 + spec.action_offsets).tolist() == naive.action_steps(spec, t0)
    assert (t0 + spec.state_offsets).tolist() == [observation[-1] for observation in expected]


def test_the_articles_window_decodes_four_frames_for_two_stacks_of_three():
    spec = WindowSpec(history=1, stack=3)
    assert spec.unique_offsets.tolist() == [-2, -1, 0, 1]
    assert spec.observation_index.tolist() == [[0, 1, 2], [1, 2, 3]]
    assert (spec.first_start, spec.count(2), spec.count(3), spec.count(10)) == (2, 0, 1, 8)


@pytest.mark.parametrize("fields", [{"history": -1}, {"history": 1, "stack": 0}, {"history": 1, "frame_skip": 1.0}])
def test_impossible_windows_are_refused_with_their_value(fields):
    with pytest.raises(ValueError, match=repr(list(fields.values())[-1])):
        WindowSpec(**fields)
