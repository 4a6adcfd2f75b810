import numpy as np
import pytest
from absl import logging

from mmjax.data import counters
from mmjax.data.encode import DAMAGED, KEPT, LEFT_OUT, TRUNCATED, Item
from mmjax.data.mixture import Draw
from mmjax.data.templates import Encoded


def item(source, outcome, tokens=0, images=0):
    ints = np.zeros(tokens, np.int32)
    encoded = Encoded(ints, ints, ints, ints, np.zeros((images, 2), np.int32), ("image",) * images)
    return Item(Draw(source, 0, 0), outcome, encoded if outcome in (KEPT, TRUNCATED) else None)


@pytest.mark.quick
def test_what_became_of_records_is_counted_by_source_and_added_up():
    counts = [counters.empty(), counters.empty()]
    for i in (item(0, KEPT, 5, 1), item(0, DAMAGED), item(1, TRUNCATED, 7, 2), item(0, LEFT_OUT), item(0, DAMAGED)):
        counters.count(counts, i)
    assert counts == [dict(records=4, truncated=0, tokens=5, images=1, skipped={DAMAGED: 2, LEFT_OUT: 1}),
                      dict(records=1, truncated=1, tokens=7, images=2, skipped={})]
    total = counters.add(*counts)
    assert total == dict(records=5, truncated=1, tokens=12, images=3, skipped={DAMAGED: 2, LEFT_OUT: 1})
    assert counters.flat(dict(pages=dict(web=total)))["data/pages/web/skipped/document damaged"] == 2
    assert counters.outcomes([item(0, KEPT), item(1, KEPT), item(0, DAMAGED)]) == {KEPT: 2, DAMAGED: 1}


def test_a_share_of_a_thousand_or_of_all_may_be_damaged():
    def sources(records, damaged, left_out=0):
        web = dict(counters.empty(), records=records, skipped={DAMAGED: damaged, LEFT_OUT: left_out})
        return dict(web=web, books=counters.empty())

    counters.check_share("pages", sources(12, 10), 0.01)            # 10 of the first 1,000
    counters.check_share("pages", sources(5000, 50, left_out=4000), 0.01)
    for records, damaged in ((12, 11), (5000, 51)):
        with pytest.raises(counters.TooManySkipped, match=f"'pages': {damaged} of {records} records cannot be used, "
                                                          f".*: web: {damaged} x document damaged. Mend"):
            counters.check_share("pages", sources(records, damaged), 0.01)


def test_the_first_few_records_of_a_reason_are_named_once(monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
    names = counters.Names()
    for record in (1, 1, 2, 3, 4, 5, 6, 7, 2):
        names.say("pages", f"record {record}", item(0, DAMAGED))
    names.say("pages", "record 8", item(0, LEFT_OUT))               # on purpose
    assert said == [*(f"data set pages: skipped record {r}: document damaged" for r in range(1, 6)),
                    "data set pages: more is skipped, and counted: document damaged"]
