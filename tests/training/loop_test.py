"""Runs start, stop, continue and fail as they should, on a toy system with real checkpoints."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

from mmjax.checkpoint import manager
from mmjax.checkpoint.paths import flatten
from mmjax.parallel import make_mesh
from mmjax.training import loop
from mmjax.training.loop import TrainingError
from mmjax.training.metrics import read_rows
from mmjax.training.structure import ConfigError

WEIGHTS = {"pages": 1.0, "text": 0.2}


@pytest.fixture(scope="module")
def small():
    return make_mesh({"data": 1}, jax.devices()[:1])


@pytest.fixture(scope="module")
def straight(toy, tmp_path_factory, small):
    """A run of 10 steps without interruption, evaluated every 4: (directory, loader, result, evaluated steps)."""
    folder, loader, seen = tmp_path_factory.mktemp("straight"), toy.Loader(), []

    def evaluate(params, step):
        seen.append(step)
        return {"accuracy": step / 10}

    result = loop.run(toy.stage(eval_every=4), toy.Model(), loader, folder, set_weights=WEIGHTS, evaluate=evaluate,
                      mesh=small)
    return folder, loader, result, seen


def raw(tree):
    return {path: np.asarray(x).tobytes() for path, x in flatten(tree).items()}


def losses(folder):
    return [(row["step"], row["loss"], row["grad_norm"]) for row in read_rows(folder) if "loss" in row]


def content(folder):
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_leaves_the_whole_directory(straight, toy):
    folder, loader, result, seen = straight
    names = {p.name.split(".tfevents")[0] for p in folder.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "events.out", "checkpoints", "loss.png"}
    assert manager.steps(folder) == [5, 10]
    assert json.loads((folder / "config.json").read_text())["total_steps"] == 10
    assert [step for step, *_ in losses(folder)] == list(range(1, 11)) and loader.given == list(range(10))
    first = read_rows(folder)[0]
    assert [row["data/pages/toy/records"] for row in read_rows(folder) if "loss" in row] == list(range(1, 11))
    assert {"loss/pages", "loss/text", "tokens/text", "accuracy/pages", "lr", "skipped", "tokens_per_second",
            "images_per_second", "data_wait", "seconds_per_step", "model_flops_per_second"} < first.keys()
    assert "mfu" not in first                           # nobody knows the peak of a CPU
    shares = {name: value for name, value in first.items() if name.startswith("time/")}
    assert sum(shares.values()) == pytest.approx(1) and shares["time/compile"] > 0 and len(shares) == 6
    np.testing.assert_allclose(first["loss"], first["loss/pages"] + 0.2 * first["loss/text"], rtol=1e-6)
    assert losses(folder)[-1][1] < losses(folder)[0][1]
    assert (result.step, result.evaluation, seen) == (10, {"accuracy": 1.0}, [4, 8, 10])
    assert [(r["step"], r["eval/accuracy"]) for r in read_rows(folder) if "eval/accuracy" in r] == [
        (4, 0.4), (8, 0.8), (10, 1.0)]
    assert raw(manager.restore_params(folder)) == raw(result.params)


def test_a_finished_run_is_returned_without_a_step(straight, toy, small):
    folder, _, result, _ = straight
    before, loader = content(folder), toy.Loader()
    again = loop.run(toy.stage(eval_every=4), toy.Model(), loader, folder, mesh=small, evaluate=pytest.fail)
    assert again.evaluation == {"accuracy": 1.0} and raw(again.params) == raw(result.params)
    assert loader.given == [] and content(folder) == before


def test_five_and_five_steps_are_bit_equal_to_ten(straight, toy, tmp_path, small, capsys):
    folder, _, result, _ = straight
    loop.run(toy.stage(total_steps=5), toy.Model(), toy.Loader(), tmp_path, set_weights=WEIGHTS, mesh=small)
    loader = toy.Loader()
    got = loop.run(toy.stage(), toy.Model(), loader, tmp_path, set_weights=WEIGHTS, mesh=small)
    assert loader.given == [5, 6, 7, 8, 9]
    assert losses(tmp_path) == losses(folder)
    assert raw(got.params) == raw(result.params)
    assert raw(manager._read_arrays(*_stored(tmp_path))) == raw(manager._read_arrays(*_stored(folder)))
    lines = capsys.readouterr().err.splitlines()
    assert any("368 parameters, 240 trainable" in line and "step 5 of 10" in line for line in lines)
    assert any(all(t in line for t in ("step  7/10  loss", "tokens/s", "images/s", "ETA")) for line in lines)


def _stored(folder):
    step = folder / "checkpoints" / "10"
    stored = manager._read_metadata(step)
    return step, {path: manager._as_stored(array) for path, array in stored.items()}, stored


def test_sigterm_saves_the_step_and_the_next_run_goes_on_from_it(straight, toy, tmp_path, small):
    before = signal.getsignal(signal.SIGTERM)
    loader = toy.Loader(events={6: lambda: os.kill(os.getpid(), signal.SIGTERM)})      # while step 7 is prepared
    with pytest.raises(SystemExit) as stopped:
        loop.run(toy.stage(), toy.Model(), loader, tmp_path, set_weights=WEIGHTS, mesh=small)
    assert stopped.value.code == 143 and signal.getsignal(signal.SIGTERM) == before
    assert manager.steps(tmp_path) == [5, 7]
    got = loop.run(toy.stage(), toy.Model(), toy.Loader(), tmp_path, set_weights=WEIGHTS, mesh=small)
    assert losses(tmp_path) == losses(straight[0]) and raw(got.params) == raw(straight[2].params)


def test_control_c_saves_the_step(toy, tmp_path, small):
    loader = toy.Loader(events={1: lambda: os.kill(os.getpid(), signal.SIGINT)})
    with pytest.raises(SystemExit) as stopped:
        loop.run(toy.stage(), toy.Model(), loader, tmp_path, mesh=small)
    assert stopped.value.code == 130 and manager.steps(tmp_path) == [2]


def test_rows_after_the_checkpoint_are_written_once(straight, toy, tmp_path, small):
    def crash():
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        loop.run(toy.stage(), toy.Model(), toy.Loader(events={8: crash}), tmp_path, set_weights=WEIGHTS, mesh=small)
    assert manager.steps(tmp_path) == [5]           # the save in flight was waited for
    assert losses(tmp_path)[-1][0] == 8
    loop.run(toy.stage(), toy.Model(), toy.Loader(), tmp_path, set_weights=WEIGHTS, mesh=small)
    assert losses(tmp_path) == losses(straight[0])


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_checkpoint(toy, tmp_path, small):
    loader = toy.Loader(bad=[6])
    with pytest.raises(TrainingError, match=r"step 7: .*loss/pages=nan, loss/text=\d.*the update was skipped.*"
                                            r"max_nonfinite=0.*checkpoint, of step 5, is intact"):
        loop.run(toy.stage(), toy.Model(), loader, tmp_path, mesh=small)
    assert manager.steps(tmp_path) == [5]
    assert read_rows(tmp_path)[6]["loss"] is None


def test_the_last_loss_is_looked_at_before_it_is_saved(toy, tmp_path, small):
    with pytest.raises(TrainingError, match="step 3: .*there is no checkpoint yet"):
        loop.run(toy.stage(total_steps=3, checkpoint_every=0), toy.Model(), toy.Loader(bad=[2]), tmp_path, mesh=small)
    assert manager.steps(tmp_path) == []


def test_losses_that_are_not_finite_are_skipped_up_to_the_limit(toy, tmp_path, small, capsys):
    with pytest.raises(TrainingError, match="step 10: .*max_nonfinite=1"):
        loop.run(toy.stage(max_nonfinite=1), toy.Model(), toy.Loader(bad=[2, 9]), tmp_path, mesh=small)
    assert "step 3: the loss or its gradient is not finite" in capsys.readouterr().err
    assert manager.steps(tmp_path) == [5]
    result = loop.run(toy.stage(max_nonfinite=2), toy.Model(), toy.Loader(bad=[2, 9]), tmp_path, mesh=small)
    assert read_rows(tmp_path)[-1]["skipped"] == 2
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(result.params))


@pytest.mark.quick
def test_the_directory_of_another_run_is_refused_and_untouched(straight, toy, small):
    folder = straight[0]
    before = content(folder)
    with pytest.raises(ConfigError, match=r"holds a run of another config(.|\n)*seed +0 +1"):
        loop.run(toy.stage(seed=1), toy.Model(), toy.Loader(), folder, mesh=small)
    assert content(folder) == before


@pytest.mark.quick
def test_a_directory_whose_config_is_gone_or_broken_is_refused(toy, tmp_path, small):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ConfigError, match="holds results of a run, but no config.json"):
        loop.run(toy.stage(), toy.Model(), toy.Loader(), tmp_path, mesh=small)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="config.json is not JSON"):
        loop.run(toy.stage(), toy.Model(), toy.Loader(), tmp_path, mesh=small)
    assert (tmp_path / "config.json").read_text() == "{"


def test_data_that_ends_is_named(toy, tmp_path, small):
    with pytest.raises(TrainingError, match="the data ended after step 2 of total_steps=10"):
        loop.run(toy.stage(), toy.Model(), toy.Loader(end=2), tmp_path, mesh=small)


@pytest.mark.quick
def test_rows_that_do_not_divide_over_the_devices_are_named(toy, tmp_path):
    class Six(toy.Loader):
        def __next__(self):
            return {"pages": toy.batch(0, rows=6)}

    with pytest.raises(ConfigError, match="'pages' has 6 rows a step, .* multiple of the 4 devices .* try 4 or 8"):
        loop.run(toy.stage(), toy.Model(), Six(), tmp_path)


def test_a_stage_takes_over_parameters_of_an_earlier_one(straight, toy, tmp_path, small):
    folder, _, result, _ = straight
    stage = toy.stage(total_steps=1, init_from={"lm": "first"}, rules=(("lm/.*", "frozen"), (".*", "main")))
    (tmp_path / "first").symlink_to(folder)
    got = loop.run(stage, toy.Model(), toy.Loader(), tmp_path / "second", mesh=small)
    head = result.params["lm"]["head"]
    assert raw(got.params["lm"]["head"]) == raw(jax.tree.map(lambda x: x.astype("bfloat16"), head))
    assert raw(got.params["vision"]) != raw(result.params["vision"])
    elsewhere = dataclasses.replace(stage, init_from={"": str(folder)}, rules=((".*", "main"),), frozen_dtype="float32")
    got = loop.run(elsewhere, toy.Model(), toy.Loader(), tmp_path / "third", mesh=small)
    assert raw(got.params) != raw(result.params)
    np.testing.assert_allclose(got.params["lm"]["head"]["w"], head["w"], atol=1e-3)
    with pytest.raises(manager.CheckpointError, match="no checkpoint in .*/nowhere/checkpoints"):
        missing = dataclasses.replace(stage, init_from={"lm": "nowhere"})
        loop.run(missing, toy.Model(), toy.Loader(), tmp_path / "fourth", mesh=small)
