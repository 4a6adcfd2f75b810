"""Orders: each record once an epoch, whoever shares it, and a position that is a number or two."""

import numpy as np
import pytest

from mmjax.data.shuffle import WINDOW, BlockOrder, Record, RecordOrder, derive_seed


def take(order, count):
    out = []
    for _ in range(count):
        out.append(order.peek())
        order.advance()
    return out


@pytest.mark.quick
@pytest.mark.parametrize("streams", [1, 2, 3])
def test_streams_read_every_record_of_every_epoch_once(streams):
    records = [r for s in range(streams) for r in take(RecordOrder(12, 5, s, streams), 36 // streams)]
    assert sorted(records) == [Record(e, i) for e in range(3) for i in range(12)]
    alone = take(RecordOrder(12, 5), 36)
    assert sorted(records) == sorted(alone)
    epochs = [[r.index for r in alone[k:k + 12]] for k in (0, 12, 24)]
    assert len({tuple(e) for e in epochs}) == 3 and list(range(12)) not in epochs


def test_more_streams_than_records_still_read_all():
    records = [r for s in range(5) for r in take(RecordOrder(3, 0, s, 5), 3)]
    assert sorted(records) == [Record(e, i) for e in range(5) for i in range(3)]


@pytest.mark.quick
@pytest.mark.parametrize("streams", [1, 2])
def test_blocks_stay_together_and_records_mix_within_a_few(streams):
    ends = np.cumsum([3, 5, 2, 4, 6, 1, 3, 8])                  # 8 blocks, so that 2 streams have 4 of them each
    orders = [BlockOrder(ends, 1, s, streams) for s in range(streams)]
    found = []
    for order in orders:
        while order.position[0] < 8 // streams // WINDOW:
            number, window = order.position[0], []
            while order.position[0] == number:
                window += take(order, 1)
            blocks = {int(np.searchsorted(ends, r.index, side="right")) for r in window}
            assert len(blocks) == WINDOW and [r.index for r in window] != sorted(r.index for r in window)
            found += window
    assert sorted(found) == [Record(0, i) for i in range(32)]


@pytest.mark.parametrize("make", [lambda: RecordOrder(7, 3, 1, 2), lambda: BlockOrder(np.array([2, 3, 7]), 3, 1, 2)])
def test_a_position_is_where_the_order_goes_on(make):
    order = make()
    for _ in range(20):
        other = make()
        other.position = order.position
        assert take(other, 9) == take(order, 9)
        order.position = other.position


def test_seeds_differ_by_purpose():
    assert len({derive_seed(s, p) for s in range(10) for p in "abcdef"}) == 60
    assert take(RecordOrder(50, 0), 50) != take(RecordOrder(50, 1), 50)


@pytest.mark.parametrize("count", [1 << 16, (1 << 16) + 1])      # Grain's own shuffle repeats one of the latter
def test_short_and_long_orders_are_permutations(count):
    indices = [r.index for r in take(RecordOrder(count, 2), count)]
    assert len(set(indices)) == count and max(indices) == count - 1
    assert abs(np.corrcoef(indices, range(count))[0, 1]) < 0.02
