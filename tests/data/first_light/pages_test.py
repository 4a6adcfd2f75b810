import collections

import numpy as np
import pytest

from mmjax.data.documents import Document, Image, Text
from mmjax.data.first_light import pages


def pool(kind, count, answer=" x"):
    return [pages.Example(f"{kind}{i}".encode(), "Output:", answer, kind) for i in range(count)]


def few_shot(examples, count=400, max_shots=4, max_length=10_000, seed=0):
    documents = pages.few_shot_pages(examples, count, max_shots, max_length, np.random.default_rng(seed), "t")
    return [pages.read_page(d) for d in documents]


def test_page_is_image_prompt_answer():
    document = pages.page([pages.Example(b"a", "Output:", " one"), pages.Example(b"b", "Q:", " two")], "k", [0.0, 1.0])
    assert document == Document((Image(b"a"), Text("Output:", 0.0), Text(" one", 0.0),
                                 Image(b"b"), Text("Q:", 0.0), Text(" two", 1.0)), "k")


def test_read_page_inverts_page():
    examples = [pages.Example(b"a", "Output:", " one"), pages.Example(b"b", "Q:", " two")]
    assert pages.read_page(pages.page(examples, "k")) == examples


def test_read_page_refuses_another_form():
    with pytest.raises(ValueError, match=r"'k': segments 0 to 1 are \[Image, Text\]"):
        pages.read_page(Document((Image(b"a"), Text("x")), "k"))


def test_shots_are_uniform_and_never_repeat_a_picture():
    made = few_shot(pool("a", 30), count=1000)
    counts = collections.Counter(len(p) for p in made)
    assert sorted(counts) == [1, 2, 3, 4, 5] and min(counts.values()) > 150
    assert all(len({e.image for e in p}) == len(p) for p in made)


def test_one_picture_with_two_facts_is_used_once():
    same = [pages.Example(b"p", "Output:", a, "a") for a in (" one", " two")]
    assert {len(p) for p in few_shot(same)} == {1}


def test_page_keeps_to_one_kind_in_proportion():
    made = few_shot(pool("a", 30) + pool("b", 10))
    kinds = [{e.image[:1] for e in p} for p in made]
    assert all(len(k) == 1 for k in kinds)
    assert 0.15 < np.mean([k == {b"b"} for k in kinds]) < 0.35


def test_length_limits_shots_but_never_drops_the_query():
    made = few_shot(pool("a", 30), max_length=3 * (7 + 2 + 2))
    assert {len(p) for p in made} == {1, 2, 3}
    assert {len(p) for p in few_shot(pool("a", 30), max_length=1)} == {1}
