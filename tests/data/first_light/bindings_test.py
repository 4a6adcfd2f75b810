import collections
import dataclasses

import pytest

from mmjax.data.documents import DocumentSource
from mmjax.data.first_light import bindings, pages

TINY = bindings.BindingsConfig(train_classes=30, held_out_classes=10, pages=60, held_out_pages=20, held_out_shots=3,
                               jitter=0.0)  # without jitter a class is one picture, so pictures tell classes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bindings") / "glyphs"
    bindings.write_bindings(folder, TINY, progress=False)
    return folder


def read(folder, name):
    return list(DocumentSource(folder / f"{name}.array_record"))


def pictures(folder, name):
    return {e.image for d in read(folder, name) for e in pages.read_page(d)}


@pytest.mark.quick
def test_held_out_pictures_are_never_seen_in_training(folder):
    train, held_out = pictures(folder, "train"), pictures(folder, "held_out")
    assert len(train) == 30 and len(held_out) == 10 and not train & held_out


def test_keys_name_the_classes(folder):
    classes = {name: {int(c) for d in read(folder, name) for c in d.key.split("/")[2].split(",")}
               for name in ("train", "held_out", "seen")}
    assert classes["train"] == set(range(30)) >= classes["seen"] and classes["held_out"] == set(range(30, 40))


def test_a_label_means_one_class_on_a_page_and_another_on_the_next(folder):
    labels_of = collections.defaultdict(set)
    for document in read(folder, "train") + read(folder, "held_out"):
        examples = pages.read_page(document)
        bound = {e.image: e.answer for e in examples}
        assert all(bound[e.image] == e.answer for e in examples)
        assert len(set(bound.values())) == len(bound) == len({a[1] for a in bound.values()})
        for image, label in bound.items():
            labels_of[image].add(label)
    assert sum(len(labels) for labels in labels_of.values()) / len(labels_of) > 3


def test_training_pages_weigh_only_what_can_be_known(folder):
    ways, shots = set(), set()
    for document in read(folder, "train"):
        examples, seen = pages.read_page(document), set()
        for example, answer in zip(examples, document.segments[2::3], strict=True):
            assert answer.weight == float(example.answer in seen)
            seen.add(example.answer)
        counts = collections.Counter(e.answer for e in examples[:-1])
        assert len(set(counts.values())) == 1
        ways.add(len(counts))
        shots |= set(counts.values())
    assert ways == {2, 3, 4} and shots == {1, 2, 3, 4}


@pytest.mark.parametrize("name", ["held_out", "seen"])
def test_rounds_of_evaluation_pages_give_every_number_of_shots(folder, name):
    answers = collections.Counter()
    for document in read(folder, name):
        examples = pages.read_page(document)
        assert len(examples) == 4 * 3 + 1
        for shots in (1, 2, 3):
            counts = collections.Counter(e.answer for e in examples[:4 * shots])
            assert list(counts.values()) == [shots] * 4
        assert [s.weight for s in document.segments[2::3]] == [0.0] * 12 + [1.0]
        answers[[e.answer for e in examples[:4]].index(examples[-1].answer)] += 1
    assert max(answers.values()) < 15  # the query is not always the same one of the first round


def test_text_pages_have_the_same_vocabulary(folder):
    documents = read(folder, "text")
    assert len(documents) == 60 and all(len(d.segments) == 1 for d in documents)
    assert not any("<" in d.segments[0].text for d in documents)


def test_same_config_gives_the_same_bytes_and_another_seed_others(folder, tmp_path):
    config = dataclasses.replace(TINY, pages=5, held_out_pages=3, jitter=1.0)
    a, b = (bindings.write_bindings(tmp_path / name, config, progress=False) for name in "ab")
    c = bindings.write_bindings(tmp_path / "c", dataclasses.replace(config, seed=1), progress=False)
    assert a == b and a.fingerprint != c.fingerprint


def test_compositions_variant_hides_pairs(tmp_path):
    config = dataclasses.replace(TINY, kind="compositions", train_classes=48, held_out_classes=16)
    bindings.write_bindings(tmp_path / "c", config, progress=False)
    train, held_out = pictures(tmp_path / "c", "train"), pictures(tmp_path / "c", "held_out")
    assert len(held_out) == 16 and not train & held_out


def test_first_weight(tmp_path):
    config = dataclasses.replace(TINY, pages=3, held_out_pages=1, first_weight=0.25)
    bindings.write_bindings(tmp_path / "w", config, progress=False)
    assert {s.weight for d in read(tmp_path / "w", "train") for s in d.segments[2::3]} == {0.25, 1.0}


@pytest.mark.parametrize(("change", "message"), [
    (dict(kind="faces"), "kind='faces' must be one of glyphs, compositions"),
    (dict(ways=(4, 2)), r"ways=\(4, 2\)"),
    (dict(shots=(0, 2)), r"shots=\(0, 2\)"),
    (dict(labels=("dax", "dop", "wug", "zep")), "3 different first letters; pages of 4 classes"),
    (dict(held_out_classes=3), "held_out_classes=3 must be at least 4"),
    (dict(kind="compositions", train_classes=60), "= 70 exceeds the 64"),
])
def test_bad_config(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)
