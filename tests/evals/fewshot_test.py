import collections
import dataclasses
import itertools

import numpy as np
import pytest
from colours import LABELS, segments

from mmjax.data.documents import Document, Text
from mmjax.evals import EvalConfig
from mmjax.evals.fewshot import choose_shots, other_examples, read_examples, read_task, shot_orders


def task_of(folder, **fields):
    config = EvalConfig(**dict(name="colours", kind="classification", data=str(folder)) | fields)
    return read_task(config), config


def keys(shots):
    return [[e.key for e in row] for row in shots]


def test_an_example_may_have_several_right_answers():
    document = Document((*segments(0), Text(" azure"), *segments(1)), "page")
    first, second = read_examples(document)
    assert (first.prompt, first.answers, second.answer) == ("Output:", (" blue", " azure"), " red")
    assert read_examples(document, "What?")[1].prompt == "What?"


@pytest.mark.parametrize("bad", [(Text("a"), *segments(0)), segments(0)[:2], (Text("a"),)])
def test_another_form_is_refused(bad):
    with pytest.raises(ValueError, match="'page' is .*an example is an image, the prompt and one or more answers"):
        read_examples(Document(bad, "page"))


def test_read_task_draws_queries_and_labels(folder):
    task, config = task_of(folder, num_queries=7)
    assert len(task.queries) == 7 and len(task.support) == 24
    assert task.labels == [LABELS] * 7
    assert [e.key for e in task_of(folder, num_queries=7)[0].queries] == [e.key for e in task.queries]
    assert [e.key for e in task_of(folder, num_queries=7, seed=1)[0].queries] != [e.key for e in task.queries]
    assert len(task_of(folder)[0].queries) == 20


def test_too_many_shots_are_refused(folder):
    with pytest.raises(ValueError, match=r"shots=\(25,\) need 25 examples; .* has 24"):
        task_of(folder, shots=(25,))
    with pytest.raises(ValueError, match="has 8 to choose from on its shortest page"):
        task_of(folder / "pages.array_record", selection="page", shots=(9,))


def test_random_shots_differ_by_query_and_grow(folder):
    task, config = task_of(folder)
    four, eight = (keys(choose_shots(task, config, k)) for k in (4, 8))
    assert all(len(set(row)) == 8 for row in eight)
    assert [row[:4] for row in eight] == four
    assert len({tuple(row) for row in four}) == 20


def test_balanced_shots_have_every_label_equally_often_in_random_order(folder):
    task, config = task_of(folder, selection="balanced")
    orders = set()
    for row in choose_shots(task, config, 10):
        counts = collections.Counter(e.answer for e in row)
        assert len({e.key for e in row}) == 10 and sorted(counts.values()) == [2, 2, 3, 3]
        orders.add(tuple(LABELS.index(e.answer) for e in row))
    assert len(orders) > 15
    assert any(len(set(order[:4])) < 4 for order in orders)     # the rounds are mixed


def test_further_orders_are_permutations_of_the_same_shots(folder):
    task, config = task_of(folder, permutations=3)
    shots = choose_shots(task, config, 4)
    orders = [keys(order) for order in shot_orders(shots, config)]
    assert len(orders) == 3 and orders[0] == keys(shots)
    assert all(sorted(a) == sorted(b) for order in orders for a, b in zip(order, orders[0], strict=True))
    for one, two in itertools.combinations(orders, 2):
        assert sum(a != b for a, b in zip(one, two, strict=True)) > 15


def test_rices_shots_are_the_end_of_the_list_of_the_nearest(folder):
    task, config = task_of(folder, selection="rices")
    nearest = np.random.default_rng(0).integers(0, 24, (20, 8))
    for row, want in zip(choose_shots(task, config, 3, nearest), nearest, strict=True):
        assert [e.key for e in row] == [task.support[j].key for j in want[-3:]]


def test_a_page_brings_its_own_shots_and_labels(folder):
    task, config = task_of(folder / "pages.array_record", selection="page")
    assert task.labels[0] == (" blue", " red")
    assert task.labels[1] == (" redder", " two red stars")
    assert [[e.answer for e in row] for row in choose_shots(task, config, 3)][0] == [" blue", " red", " blue"]


def test_the_control_shows_an_image_with_another_answer(folder):
    task, config = task_of(folder)
    others = other_examples(task, config, 4)
    assert all(other.answer != query.answer for other, query in zip(others, task.queries, strict=True))
    assert {e.answer for e in others} == set(LABELS)


def test_the_control_asks_the_same_question_if_it_can(folder):
    task, config = task_of(folder)
    queries = [dataclasses.replace(e, prompt="a?" if e.answer == " blue" else "b?") for e in task.queries]
    for other, query in zip(other_examples(task._replace(queries=queries), config, 4), queries, strict=True):
        assert other.answer != query.answer and (other.prompt == query.prompt or query.prompt == "a?")


def test_the_control_of_a_page_is_no_copy_of_a_shot_if_it_can(folder):
    task, config = task_of(folder / "pages.array_record", selection="page")
    for k in range(7):          # after seven shots one with another answer is left
        for other, query, page in zip(other_examples(task, config, k), task.queries, task.own, strict=True):
            assert other.answer != query.answer
            assert other in page[k:]


def test_the_control_needs_another_answer(folder):
    task, config = task_of(folder)
    with pytest.raises(ValueError, match="no example has another answer than ' blue'"):
        other_examples(task._replace(queries=[e for e in task.queries if e.answer == " blue"]), config, 0)
