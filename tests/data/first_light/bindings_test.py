import collections
import dataclasses

import pytest

from mmjax.data.first_light import bindings, glyphs, pages
from mmjax.data.sources import open_source

# Without jitter a class is one picture, so pictures tell classes.
TINY = bindings.BindingsConfig(compositions=(48, 16), glyphs=(30, 10), ways=(2, 4), pages=60, held_out_pages=20,
                               held_out_shots=3, jitter=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bindings") / "pages"
    bindings.write_bindings(folder, TINY, progress=False)
    return folder


def read(folder, name):
    return list(open_source("array_record", folder / f"{name}.array_record"))


def pictures(folder, name):
    return {e.image for d in read(folder, name) for e in pages.read_page(d)}


@pytest.mark.quick
@pytest.mark.parametrize(("family", "train", "held_out"), [("glyphs", 30, 10), ("compositions", 48, 16)])
def test_held_out_pictures_are_never_seen_in_training(folder, family, train, held_out):
    shown = pictures(folder, f"train_{family}")
    unseen = pictures(folder, f"held_out_{family}")
    assert 0.9 * train < len(shown) <= train and len(unseen) == held_out and not shown & unseen
    assert family == "glyphs" or not pictures(folder, "captions") & unseen


def test_keys_name_the_classes(folder):
    classes = {name: {int(c) for d in read(folder, f"{name}_glyphs") for c in d.key.split("/")[2].split(",")}
               for name in ("train", "held_out", "seen")}
    assert classes["train"] == set(range(30)) >= classes["seen"] and classes["held_out"] == set(range(30, 40))


def test_a_label_means_one_class_on_a_page_and_another_on_the_next(folder):
    labels_of = collections.defaultdict(set)
    for document in read(folder, "train_glyphs") + read(folder, "held_out_glyphs"):
        examples = pages.read_page(document)
        bound = {e.image: e.answer for e in examples}
        assert all(bound[e.image] == e.answer for e in examples)
        assert len(set(bound.values())) == len(bound) == len({a[1] for a in bound.values()})
        for image, label in bound.items():
            labels_of[image].add(label)
    assert sum(len(labels) for labels in labels_of.values()) / len(labels_of) > 3


def test_training_pages_weigh_only_what_can_be_known(folder):
    ways, shots = set(), set()
    for document in read(folder, "train_glyphs"):
        examples, seen = pages.read_page(document), set()
        for example, answer in zip(examples, document.segments[2::3], strict=True):
            assert answer.weight == float(example.answer in seen)
            seen.add(example.answer)
        counts = collections.Counter(e.answer for e in examples[:-1])
        assert len(set(counts.values())) == 1
        ways.add(len(counts))
        shots |= set(counts.values())
    assert ways == {2, 3, 4} and shots == {1, 2, 3, 4}


@pytest.mark.parametrize("name", ["held_out_glyphs", "seen_glyphs"])
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


def test_captions_say_what_a_composition_is(folder):
    for document in read(folder, "captions"):
        (example,) = pages.read_page(document)
        shape, colour = glyphs.Compositions().parts(int(document.key.split("/")[2]))
        assert example.answer == f" {colour} {shape}"


def test_same_config_gives_the_same_bytes_and_another_seed_others(folder, tmp_path):
    config = dataclasses.replace(TINY, pages=5, held_out_pages=3, jitter=1.0)
    a, b = (bindings.write_bindings(tmp_path / name, config, progress=False) for name in "ab")
    c = bindings.write_bindings(tmp_path / "c", dataclasses.replace(config, seed=1), progress=False)
    assert a == b and a.fingerprint != c.fingerprint


def test_first_weight(tmp_path):
    config = dataclasses.replace(TINY, pages=3, held_out_pages=1, first_weight=0.25)
    bindings.write_bindings(tmp_path / "w", config, progress=False)
    assert {s.weight for d in read(tmp_path / "w", "train_glyphs") for s in d.segments[2::3]} == {0.25, 1.0}


@pytest.mark.parametrize(("change", "message"), [
    (dict(ways=(4, 2)), r"ways=\(4, 2\)"),
    (dict(shots=(0, 2)), r"shots=\(0, 2\)"),
    (dict(labels=("dax", "dop", "wug", "zep")), "3 different first letters; pages of 4 classes"),
    (dict(glyphs=(30, 3)), r"glyphs=\(30, 3\) must be at least \(4, 4\)"),
    (dict(compositions=(60, 10)), "70 classes and exceed the 64"),
])
def test_bad_config(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)
