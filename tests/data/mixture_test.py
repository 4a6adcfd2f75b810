"""Mixtures: weights that hold in every stretch, and may change."""

import pytest

from mmjax.data.mixture import Draw, Mixture
from mmjax.data.shuffle import RecordOrder


def mixture(*weights, counts=(12, 8, 5)):
    return Mixture(weights, [RecordOrder(n, seed) for seed, n in zip(range(len(weights)), counts, strict=False)])


def take(mixture, count):
    return [next(mixture) for _ in range(count)]


@pytest.mark.quick
def test_weights_hold_in_every_stretch():
    drawn = take(mixture(3, 1), 96)
    for start in range(0, 96, 4):
        assert sum(d.source == 0 for d in drawn[start:start + 4]) == 3
    assert sorted(drawn) == [Draw(0, e, i) for e in range(6) for i in range(12)] + [
        Draw(1, e, i) for e in range(3) for i in range(8)]
    thirds = take(mixture(0.45, 0.45, 0.1), 1000)              # MM1's
    assert [sum(d.source == k for d in thirds) for k in range(3)] == [450, 450, 100]


@pytest.mark.quick
def test_a_position_goes_on_also_under_other_weights():
    first = mixture(3, 1)
    before = take(first, 41)
    again, other = mixture(3, 1), mixture(1, 3)
    again.set_state(first.get_state())
    other.set_state(first.get_state())
    assert take(again, 60) == take(first, 60)
    after = take(other, 40)
    assert sum(d.source == 0 for d in after) == 10
    assert len({*before, *after}) == 81                        # nothing twice
    for k, n in ((0, 12), (1, 8)):                             # and nothing left out
        drawn = [d for d in before + after if d.source == k]
        assert sorted(drawn)[:len(drawn) // n * n] == [Draw(k, e, i) for e in range(len(drawn) // n) for i in range(n)]


def test_one_that_follows_is_where_the_other_is():
    ahead, behind = mixture(1, 2, 4), mixture(1, 2, 4)
    for draw in take(ahead, 50):
        behind.follow(draw)
    assert behind.get_state() == ahead.get_state()
