import numpy as np
import pytest
import scipy.ndimage

from mmjax.data.first_light import glyphs, pictures


def blurred(image):
    return scipy.ndimage.gaussian_filter(np.asarray(image, float), 1.5).ravel()


def test_classes_can_be_told_apart():
    """The nearest class mean of blurred pixels names 20 classes; chance is 5 %."""
    family, rng = glyphs.Glyphs(), np.random.default_rng(0)
    means = np.stack([np.mean([blurred(family.draw(c, 32, rng)) for _ in range(8)], 0) for c in range(20)])
    guesses = [np.argmin(((means - blurred(family.draw(c, 32, rng))) ** 2).sum(1)) for c in range(20) for _ in range(3)]
    assert np.mean(guesses == np.repeat(np.arange(20), 3)) > 0.85


def test_instances_differ_and_jitter_does_it():
    rng = np.random.default_rng(0)
    assert len({glyphs.Glyphs().draw(3, 32, rng).tobytes() for _ in range(20)}) == 20
    assert len({glyphs.Glyphs(jitter=0).draw(3, 32, rng).tobytes() for _ in range(5)}) == 1


def test_every_class_is_another_character_and_the_seed_renames_them():
    rng = np.random.default_rng(0)
    drawn = {glyphs.Glyphs(jitter=0).draw(c, 32, rng).tobytes() for c in range(300)}
    assert len(drawn) == 300
    assert glyphs.Glyphs(seed=1, jitter=0).draw(0, 32, rng).tobytes() not in drawn


def test_glyphs_have_ink_in_the_frame():
    rng = np.random.default_rng(0)
    ink = np.array([np.mean(np.asarray(glyphs.Glyphs().draw(c, 32, rng)) > 127) for c in range(200)])
    assert ink.min() > 0.02 and ink.max() < 0.4


@pytest.mark.parametrize("seed", [0, 1])
def test_compositions_hold_out_pairs_but_no_part(seed):
    family = glyphs.Compositions(seed)
    train, held_out = [family.parts(c) for c in range(48)], [family.parts(c) for c in range(48, 64)]
    assert len(set(train + held_out)) == 64
    for part, every in ((0, pictures.SHAPES), (1, pictures.COLOURS)):
        assert sorted(p[part] for p in held_out) == sorted(list(every) * 2)
        assert {p[part] for p in train} == set(every)


def test_compositions_are_drawn_in_their_colour():
    family, rng = glyphs.Compositions(), np.random.default_rng(0)
    for c in range(64):
        pixels = np.asarray(family.draw(c, 32, rng), int)
        distance = np.abs(pixels - np.array(pictures.COLOURS[family.parts(c)[1]])).max(2)
        assert (distance == 0).sum() >= 12


def test_composition_out_of_range():
    with pytest.raises(ValueError, match=r"class_id=64 must be in \[0, 64\)"):
        glyphs.Compositions().parts(64)
