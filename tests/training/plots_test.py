"""Pictures are written and show what they must: a wrong answer is red, a right one green."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from mmjax.training import plots

pytestmark = pytest.mark.quick


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.int32)


def count(path, color):
    return int((np.abs(pixels(path) - np.round(255 * np.array(to_rgb(color)))).max(-1) <= 2).sum())


def test_smoothing_is_a_centred_mean():
    x = np.random.default_rng(0).normal(size=9)
    want = [x[max(i - 2, 0):i + 3].mean() for i in range(9)]
    np.testing.assert_allclose(plots.smooth(x, 4), want, rtol=1e-12)
    np.testing.assert_array_equal(plots.smooth(x[:1], 0), x[:1])


def test_loss_plot_has_a_curve_per_set_and_skips_nulls(tmp_path):
    rows = [{"step": s, "loss": 3 / s, "loss/a": 2 / s, "loss/b": 5 / s, "lr": 1e-3} for s in range(1, 50)]
    rows[3]["loss/b"] = None
    plots.plot_loss([*rows, {"step": 49, "eval/accuracy": 1.0}], tmp_path / "loss.png")
    counts = [count(tmp_path / "loss.png", color) for color in plots.COLORS[:4]]
    assert min(counts[:3]) > 100 and counts[3] == 0
    plots.plot_loss([{"step": s, "loss": 1.0, "loss/a": 1.0, "lr": 1e-3} for s in (1, 2)], tmp_path / "one.png")
    assert count(tmp_path / "one.png", plots.COLORS[1]) == 0
    plots.plot_loss([], tmp_path / "none.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loss.png", "none.png", "one.png"]


@pytest.mark.parametrize("correct, seen, unseen", [(True, plots.GREEN, plots.RED), (False, plots.RED, plots.GREEN)])
def test_samples_are_green_if_right_and_red_if_wrong(tmp_path, correct, seen, unseen):
    image = np.full((4, 4, 3), 90, np.uint8)
    sample = plots.Sample([image, image], "costs $5 and <image> a_b^c", "five $", "$six", correct)
    plots.plot_samples([sample] * 3, tmp_path / "samples.png", title="held out", columns=2)
    assert count(tmp_path / "samples.png", seen) > 500 and count(tmp_path / "samples.png", unseen) == 0
    assert (pixels(tmp_path / "samples.png") == 90).all(-1).sum() > 3 * 100**2


def test_a_sample_without_image_and_with_long_texts_is_drawn(tmp_path):
    plots.plot_samples([plots.Sample([], "word " * 99, "", "word " * 99, True)], tmp_path / "samples.png")
    assert count(tmp_path / "samples.png", plots.GREEN) > 100


@pytest.mark.parametrize("keep_end, want", [(False, "aaa bbb\nccc ddd\u2026"), (True, "\u2026ccc ddd\neee")])
def test_text_that_is_too_long_is_cut_at_the_right_end(keep_end, want):
    assert plots._wrapped("aaa bbb\n ccc ddd eee", 2, keep_end, width=8) == want
    assert plots._wrapped("aaa", 2, keep_end, width=8) == "aaa"


def test_shots_plot_has_curves_chance_and_control(tmp_path):
    plots.plot_shots({"random": {0: 0.1, 4: 0.9}, "similar": {4: 0.95}}, tmp_path / "shots.png", chance=0.1,
                     control={0: 0.1, 4: 0.12}, title="digits")
    assert min(count(tmp_path / "shots.png", c) for c in (plots.BLUE, plots.ORANGE, plots.GREY)) > 50
