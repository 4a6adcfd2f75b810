"""Captions are checked against pixels: colours by nearest colour, counts by connected parts, places by centroids."""

import numpy as np
import pytest
import scipy.ndimage

from mmjax.data.first_light import pictures, scenes

SIZE = 96  # so fine a ring keeps pixels of its pure colour all round
NAMES = list(pictures.COLOURS)


def parts(scene):
    """{colour: [(x, y, pixels) of each connected part]}, seen in the picture alone."""
    pixels = np.asarray(scenes.draw(scene, SIZE), float)
    palette = np.array([*pictures.COLOURS.values()], float)
    grey = pixels[..., :1].min() * np.ones(3)
    nearest = np.argmin(((pixels[..., None, :] - np.vstack([palette, grey])) ** 2).sum(-1), -1)
    solid = np.abs(pixels - np.vstack([palette, grey])[nearest]).max(-1) < 40  # mixed pixels of an edge do not count
    found = {}
    for i, name in enumerate(NAMES):
        labels, count = scipy.ndimage.label((nearest == i) & solid, np.ones((3, 3)))
        if count:
            centres = scipy.ndimage.center_of_mass(labels > 0, labels, range(1, count + 1))
            sizes = np.bincount(labels.ravel())[1:]
            found[name] = [(x, y, n) for (y, x), n in zip(centres, sizes, strict=True) if n > 20]
    return {name: spots for name, spots in found.items() if spots}


def many(make, count=60):
    rng = np.random.default_rng(1)
    return [make(rng) for _ in range(count)]


@pytest.mark.quick
def test_counts_are_the_parts_one_sees():
    for scene in many(scenes.several_things):
        words = scene.caption.split(" and ")
        said = {w.split()[1]: scenes.NUMBERS.index(w.split()[0]) for w in words}
        assert {colour: len(spots) for colour, spots in parts(scene).items()} == said, scene.caption
        answers = [a.strip() for kind, _, a in scene.facts if kind == "count"]
        assert answers == [w.split()[0] for w in words]


def test_order_of_two_things_is_what_one_sees():
    for scene in many(scenes.two_things):
        seen = parts(scene)
        axis, word = (0, " left of ") if " left of " in scene.caption else (1, " above ")
        first, second = (phrase.split()[1] for phrase in scene.caption.split(word))
        assert set(seen) == {first, second}, scene.caption
        assert seen[first][0][axis] < seen[second][0][axis]
        low, high = (answer.split()[1] for _, _, answer in scene.facts[1:])
        assert (low, high) == (first, second)


def test_size_and_place_of_one_thing_are_what_one_sees():
    for scene in many(scenes.one_thing, 120):
        facts = {kind: answer.strip() for kind, _, answer in scene.facts}
        (colour, [(x, y, _)]), = parts(scene).items()
        assert facts["colour"] == colour
        side = np.ptp(np.nonzero(np.asarray(scenes.draw(scene, SIZE)).max(2) > 60), axis=1).max()
        assert facts["size"] == ("big" if side > SIZE / 2 else "small")
        if facts["size"] == "small":
            away = np.array([x, y]) - (SIZE - 1) / 2
            axis = np.argmax(np.abs(away))
            ends = (("left", "right"), ("top", "bottom"))[axis]
            want = "middle" if np.abs(away[axis]) < SIZE / 6 else ends[int(away[axis] > 0)]
            assert facts["place"] == want and want in scene.caption


def test_named_shape_is_the_drawn_one():
    for scene in many(scenes.one_thing, 20):
        words = scene.caption.split()
        shape = next(a.strip() for kind, _, a in scene.facts if kind == "shape")
        assert words[1:4] == [words[1], scene.things[0].colour, shape] and shape == scene.things[0].shape


def test_questions_agree_with_the_things():
    for scene in many(scenes.random_scene, 100):
        for kind, prompt, answer in scene.facts:
            assert prompt == "Output:" if kind == "caption" else prompt.startswith("Question: ")
            assert prompt.endswith(":") and answer.startswith(" ") and answer.strip()
            if kind == "count":
                shape = prompt.split("many ")[1].split("?")[0]
                assert scenes.NUMBERS[sum(scenes.plural(t.shape) == shape for t in scene.things)] == answer.strip()


def test_a_picture_has_one_caption():
    """Scenes that look alike must not be called differently: groups come in the order of SHAPES."""
    for scene in many(scenes.several_things):
        shapes = [t.shape for t in scene.things]
        words = [w.split()[2] for w in scene.caption.split(" and ")]
        order = [s for s in pictures.SHAPES if s in shapes]
        assert words == [scenes.plural(s, shapes.count(s)) for s in order]
        assert 2 <= len(shapes) <= 5 and sorted(shapes.count(s) for s in order) != [1, 1]


def test_grammar():
    assert [scenes.plural("cross"), scenes.plural("star"), scenes.plural("star", 1)] == ["crosses", "stars", "star"]
    assert str(scenes.Thing("ring", "orange", 0, 0, 0)) == "an orange ring"
    assert str(scenes.Thing("ring", "blue", 0, 0, 0)) == "a blue ring"
