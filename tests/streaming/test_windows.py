"""Windows over long proteins."""

from hypothesis import given, settings
from hypothesis import strategies as st

from esm2_hyperpod.streaming.windows import window_of, windows


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 150), st.integers(4, 40))
def test_each_residue_is_taken_once_from_where_it_is_farthest_from_a_cut(residues, max_length):
    room, found = max_length - 2, windows(residues, max_length)
    assert [at for window in found for at in range(window.first, window.last)] == list(range(residues))
    assert all(window.stop - window.start == min(room, residues) for window in found)
    assert (found[0].start, found[-1].stop) == (0, residues)

    def to_a_cut(window, at):
        left = at - window.start if window.start else residues
        right = window.stop - 1 - at if window.stop < residues else residues
        return min(left, right)

    for at in range(residues):
        best = max(to_a_cut(window, at) for window in found if window.start <= at < window.stop)
        assert to_a_cut(window_of(at, residues, max_length), at) >= best - 1
