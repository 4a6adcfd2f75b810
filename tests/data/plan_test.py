"""Plans: rows that depend on draws alone, positions inside a half-filled buffer, and sources that are all bad."""

import json

import numpy as np
import pytest

from mmjax.data.encode import DAMAGED, KEPT, Item
from mmjax.data.mixture import Mixture
from mmjax.data.plan import Planner
from mmjax.data.shuffle import RecordOrder
from mmjax.data.templates import Encoded
from mmjax.data.threads import Threads


def encode(draw):
    """Documents of 3 to 40 tokens; one record in seven is damaged."""
    if draw.index % 7 == 3:
        return Item(draw, DAMAGED)
    ints = np.zeros(3 + draw.index * 29 % 38, np.int32)
    return Item(draw, KEPT, Encoded(ints, ints, ints, ints, np.zeros((draw.index % 3, 2), np.int32), ()))


def planner(threads=None, encode=encode, buffer=12):
    def mixture():
        return Mixture((2, 1), [RecordOrder(30, 0), RecordOrder(11, 1)])

    return Planner(mixture, encode, 64, 5, buffer, threads)


def draws(row):
    return [i.draw for i in row.items], [i.draw for i in row.skipped]


@pytest.mark.quick
def test_every_draw_ends_in_one_row_or_is_named():
    plan, seen = planner(), []
    for _ in range(40):
        row = next(plan)
        assert sum(len(i.encoded.tokens) for i in row.items) <= 64
        assert all(i.encoded is None for i in row.skipped)
        seen += [i.draw for i in row.items + row.skipped]
    assert len(set(seen)) == len(seen)
    waiting = [tuple(d) for d in plan.get_state()["buffer"]]
    mixture = Mixture((2, 1), [RecordOrder(30, 0), RecordOrder(11, 1)])
    assert sorted(seen + waiting) == sorted(next(mixture) for _ in range(len(seen) + len(waiting)))


@pytest.mark.quick
def test_a_position_goes_on_after_json_and_with_threads():
    plan, threads = planner(), Threads(2, "test")
    for _ in range(9):
        state = json.loads(json.dumps(plan.get_state()))
        for other in (planner(), planner(threads)):
            other.set_state(state)
            assert json.loads(json.dumps(other.get_state())) == state
            ahead = [draws(next(other)) for _ in range(6)]
        assert draws(next(plan)) == ahead[0]
    threads.close()


def test_nothing_but_damaged_records_gives_rows_without_documents():
    row = next(planner(encode=lambda draw: Item(draw, DAMAGED), buffer=5))
    assert row.items == [] and len(row.skipped) == 20


def test_a_document_of_the_buffer_that_is_gone_is_an_error():
    plan = planner()
    next(plan)
    other = planner(encode=lambda draw: Item(draw, DAMAGED, detail="disk on fire"))
    with pytest.raises(ValueError, match="source . record .*, cannot be read any more: document damaged: disk on fire"):
        other.set_state(plan.get_state())
