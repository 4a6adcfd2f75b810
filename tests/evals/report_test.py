import json

from mmjax.evals import EvalConfig, by_shots, table, write_json

METRICS = {"digits/chance": 0.1, "digits/accuracy/0": 0.125, "digits/accuracy_swapped/0": 0.05,
           "digits/accuracy/8": 0.9, "digits/accuracy_swapped/8": 0.0, "captions/exact_match/0": 0.5,
           "captions/cider/0": 7.25}


def test_table():
    assert table(METRICS) == "\n".join([
        "held-out task                    0 shots  8 shots  chance",
        "---------------------------------------------------------",
        "digits accuracy                    12.5%    90.0%   10.0%",
        "digits accuracy, images swapped     5.0%     0.0%   10.0%",
        "captions exact match               50.0%",
        "captions cider                      7.25",
    ])


def test_by_shots():
    assert by_shots(METRICS) == {"digits": {0: 0.125, 8: 0.9}}
    assert by_shots(METRICS, "accuracy_swapped") == {"digits": {0: 0.05, 8: 0.0}}


def test_json_holds_what_scores_depend_on(tmp_path):
    config = EvalConfig("digits", "classification", "data/digits", shots=(0, 8))
    write_json(tmp_path / "results.json", [config], METRICS, step=7)
    value = json.loads((tmp_path / "results.json").read_text())
    assert value["metrics"] == METRICS and value["step"] == 7
    assert EvalConfig(**value["evals"][0]) == config
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
