import dataclasses

import numpy as np
import pytest
from colours import LABELS

from mmjax.data.templates import make_template
from mmjax.evals import EvalConfig, run_evals


def run(folder, model, writer, *fields):
    configs = [EvalConfig(**dict(name="colours", kind="classification", data=str(folder), batch_size=8) | f)
               for f in fields]
    return run_evals(configs, model, None, writer.tokenizer, writer.template, writer.image, progress=False)


@pytest.mark.quick
def test_a_model_that_looks_is_always_right_and_never_when_images_are_swapped(folder, namer, writer):
    got = run(folder, namer, writer, dict(shots=(0, 2), permutations=2)).metrics
    assert got == {"colours/chance": 0.25, "colours/accuracy/0": 1.0, "colours/accuracy/2": 1.0,
                   "colours/accuracy_swapped/0": 0.0, "colours/accuracy_swapped/2": 0.0}


def test_a_model_that_does_not_look_scores_the_same_when_images_are_swapped(folder, namer, writer):
    got = run(folder, namer._replace(blind=True), writer, dict(shots=(0,))).metrics
    assert got["colours/accuracy/0"] == got["colours/accuracy_swapped/0"] == 0.25


def test_captions(folder, namer, writer):
    got = run(folder, namer, writer, dict(name="captions", kind="captioning", shots=(2,), max_new_tokens=16))
    # Single words are rated by one of the four n alone: 2.5 for a right one, 10 for "two red stars" without its 4-gram.
    assert got.metrics["captions/exact_match/2"] == 1.0 and got.metrics["captions/exact_match_swapped/2"] == 0.0
    assert got.metrics["captions/cider/2"] == pytest.approx((3 * 2.5 + 7.5) / 4)
    assert got.metrics["captions/cider_swapped/2"] < 1.0
    assert {s.answer for s in got.samples["captions/2"]} <= {label.strip() for label in LABELS}


def test_pages(folder, namer, writer):
    got = run(folder / "pages.array_record", namer, writer, dict(selection="page", shots=(0, 4)))
    assert got.metrics["colours/chance"] == 0.5 and got.metrics["colours/accuracy/4"] == 1.0
    assert got.metrics["colours/accuracy_swapped/4"] == 0.0


def test_rices_shows_similar_pictures(folder, namer, writer):
    got = run(folder, namer, writer, dict(selection="rices", shots=(0, 3), swapped=False, num_samples=20))
    for sample in got.samples["colours/3"]:
        *shots, query = (int(image[0, 0, 0]) for image in sample.images)
        distances = [abs(shot - query) for shot in shots]
        assert distances == sorted(distances, reverse=True) and max(distances) <= 4
    told = [f"Output: {s.truth}\n" in s.prompt for s in got.samples["colours/0"]]
    assert not all(told)            # similar ones as text alone would tell the answer


def test_samples_show_what_the_model_saw_and_said(folder, namer, writer):
    got = run(folder, namer, writer, dict(shots=(0, 2), num_samples=3)).samples
    assert list(got) == ["colours/0", "colours/2"] and len(got["colours/0"]) == 3
    sample = got["colours/2"][0]
    assert len(sample.images) == 3 and sample.images[0].shape == (8, 8, 3) and sample.images[0].dtype == np.uint8
    assert sample.prompt.count("Output:") == 3 and sample.prompt.endswith("\nOutput:")
    assert sample.truth == sample.answer == LABELS[int(sample.images[-1][0, 0, 0]) // 40].strip() and sample.correct
    assert len(got["colours/0"][0].images) == 1


def test_an_answer_ends_so_that_red_does_not_beat_redder(folder, namer, writer):
    """Without the token that ends an answer, "red" could never be less likely than "redder"."""
    no_end = dataclasses.replace(writer, template=make_template("flamingo", eoc=""))
    assert no_end.end_ids == () and writer.candidates([" red"])[0][-1] == writer.tokenizer.id("<EOC>")
    got = run(folder, namer, writer, dict(shots=(0,), swapped=False, num_samples=20))
    assert {s.answer for s in got.samples["colours/0"] if s.truth == "redder"} == {"redder"}
