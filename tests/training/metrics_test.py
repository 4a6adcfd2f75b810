"""Rows survive interruptions, and the rates are those of a clock we set ourselves."""

import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from mmjax.training import metrics

pytestmark = pytest.mark.quick


def events(folder):
    """(step, tag, value) of all TensorBoard event files: records of length, CRC, Event, CRC."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            size, = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12:12 + size])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            data = data[12 + size + 4:]
    return found


def test_rows_go_to_json_lines_and_to_tensorboard(tmp_path):
    with metrics.MetricWriter(tmp_path, 0) as writer:
        writer.write(1, {"loss": 2.5, "loss/text": float("nan")})
        writer.write(2, {"eval/accuracy": 0.5})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == [
        {"step": 1, "loss": 2.5, "loss/text": None}, {"step": 2, "eval/accuracy": 0.5}]
    got = events(tmp_path)
    assert (1, "loss", 2.5) in got and (2, "eval/accuracy", 0.5) in got


def test_continuing_drops_later_rows_and_a_line_that_was_cut(tmp_path):
    with metrics.MetricWriter(tmp_path, 0) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": step})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-4])
    assert [row["step"] for row in metrics.read_rows(tmp_path)] == [1, 2]
    with metrics.MetricWriter(tmp_path, 1) as writer:
        writer.write(2, {"loss": 20})
    assert metrics.read_rows(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 20.0}]
    assert metrics.read_rows(tmp_path / "absent") == []


def test_rates_count_tokens_and_images_but_neither_padding_nor_pauses(toy, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    clock = metrics.Clock(processes=2)
    batch = toy.batch(0, rows=4, length=6)
    batch.segment_ids[:, 4:] = 0
    batch.image_segment_ids[0] = 0
    for _ in range(2):
        with clock.waiting():
            now[0] += 0.5
        clock.count({"pages": batch, "text": toy.batch(0, rows=2, length=3, images=0)})
        now[0] += 1.5
    with clock.paused():
        now[0] += 77
    assert clock.rates() == {"seconds_per_step": 2.0, "tokens_per_second": 2 * 2 * (16 + 6) / 4,
                             "images_per_second": 2 * 2 * 3 / 4, "data_wait": 0.25}
    now[0] += 1
    assert clock.rates()["tokens_per_second"] == 0


def test_utilisation_is_that_of_the_operations_a_step_needs(toy, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    batch = {"pages": toy.batch(0, rows=4, length=6)}
    known, unknown = (metrics.Clock(2, lambda batches: 1e9 * len(batches), peak) for peak in (8e9, None))
    for clock in (known, unknown):
        clock.reset()
        clock.count(batch)
        clock.count(batch)
    now[0] += 2
    rates = known.rates()
    assert (rates["model_flops_per_second"], rates["mfu"]) == (2e9, 0.25) and "MFU 25.0%" in known.text()
    assert unknown.rates().keys() == rates.keys() - {"mfu"} and unknown.text() == "; 2GFLOP/s of the model"


@pytest.mark.parametrize("number, text", [(0, "0"), (7.126, "7.13"), (999.4, "999"), (1234, "1.23k"), (45e6, "45M"),
                                          (2.5e12, "2.5T"), (3e18, "3e+03P")])
def test_short_numbers(number, text):
    assert metrics.short(number) == text


@pytest.mark.parametrize("seconds, text", [(0, "0:00"), (61.2, "1:01"), (3599.7, "1:00:00"), (90061, "25:01:01")])
def test_durations(seconds, text):
    assert metrics.duration(seconds) == text


def test_progress_prints_a_line_only_where_it_should(capsys):
    row = dict(loss=1.25, lr=3e-4, tokens_per_second=1234.0, images_per_second=0.0, data_wait=0.02,
               seconds_per_step=2.0)
    for quiet in (True, False):
        with metrics.Progress("toy", 0, 100, quiet) as progress:
            progress.step()
            progress.row(40, row)
    want = "toy  step  40/100  loss 1.2500  lr 3.00e-04  1.23k tokens/s  data wait 2%  ETA 2:00\n"
    assert capsys.readouterr().err == want
