"""Which pictures an evaluation gets, and what is in them."""

import json

import numpy as np

from mmjax.cli import report
from mmjax.evals import EvalConfig, Results, Sample

TASKS = (EvalConfig("digits", "classification", "data/digits", shots=(0, 2, 4)),
         EvalConfig("captions", "captioning", "data/captions", shots=(0,)),
         EvalConfig("similar_digits", "classification", "data/digits", shots=(2, 4), selection="rices", swapped=False),
         EvalConfig("glyphs", "classification", "data/glyphs.array_record", shots=(4,), selection="page"))
METRICS = {"digits/chance": 0.1, "digits/accuracy/0": 0.2, "digits/accuracy/2": 0.3, "digits/accuracy/4": 0.4,
           "digits/accuracy_swapped/0": 0.1, "captions/cider/0": 0.5, "similar_digits/chance": 0.1,
           "similar_digits/accuracy/2": 0.6, "similar_digits/accuracy/4": 0.7, "glyphs/chance": 0.25,
           "glyphs/accuracy/4": 0.5}


def results():
    image = np.zeros((4, 4, 3), np.uint8)
    keys = [f"{task.name}/{k}" for task in TASKS for k in task.shots]
    return Results(METRICS, {key: [Sample([image], f"{key} {i}", "a", "b", False) for i in range(8)] for key in keys})


def test_one_picture_of_shots_per_data_set_and_all_facts_as_json(tmp_path):
    report.write(results(), TASKS, tmp_path / "out", step=7)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"eval.json", "samples.png", "shots.png", "shots_glyphs.png"}
    stored = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert stored["metrics"] == METRICS and stored["step"] == 7 and stored["evals"][2]["selection"] == "rices"


def test_tasks_on_the_same_data_share_a_picture():
    curves = {"digits": {}, "similar_digits": {}, "glyphs": {}}
    assert report.by_data(TASKS, curves) == {"data/digits": ["digits", "similar_digits"],
                                             "data/glyphs.array_record": ["glyphs"]}


def test_every_task_shows_samples_at_its_fewest_shots():
    chosen = [sample.prompt for sample in report.choose_samples(results(), TASKS)]
    assert chosen == [f"{key} {i}" for key in ("digits/2", "captions/0", "similar_digits/2", "glyphs/4")
                      for i in (0, 2, 4)]


def test_the_summary_has_the_table_and_the_pictures(tmp_path):
    (tmp_path / "loss.png").touch()
    lines = report.summary(METRICS, tmp_path).splitlines()
    assert lines[2].split() == ["digits", "accuracy", "20.0%", "30.0%", "40.0%", "10.0%"]
    assert lines[-1] == f"pictures: {tmp_path}/loss.png"
