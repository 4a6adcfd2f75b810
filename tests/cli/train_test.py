"""Whole runs from the command line, and every kind of bad input: one message, nothing overwritten."""

import json
import re
import shutil

import jax
import pytest

from mmjax.checkpoint import manager
from mmjax.cli.main import FAILED, USAGE, main
from mmjax.training.metrics import read_rows


def content(folder):
    """Every file but the TensorBoard events, of which each start writes a new one."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and "tfevents" not in p.name}


@pytest.fixture
def train(config_file, capfd):
    """Runs `mmjax train`; returns the exit code and what stands on stderr."""
    def run(workdir, *overrides):
        capfd.readouterr()
        code = main(["train", f"--config={config_file}", f"--workdir={workdir}", *overrides])
        return code, capfd.readouterr().err

    return run


def test_both_stages_leave_their_results(finished):
    stages = json.loads((finished / "config.json").read_text())
    assert stages["stages"] == ["language", "flamingo"] and stages["flamingo"]["optimizer"]["name"] == "adamw"
    for stage in stages["stages"]:
        assert manager.steps(finished / stage) == [2]
        assert json.loads((finished / stage / "config.json").read_text()) == stages[stage]
        assert (finished / stage / "loss.png").is_file()
    metrics = json.loads((finished / "flamingo" / "eval.json").read_text())["metrics"]
    assert metrics.keys() == {"digits/accuracy/2", "digits/accuracy_swapped/2", "digits/chance"}
    assert {p.name for p in (finished / "flamingo").glob("*.png")} == {"loss.png", "samples.png", "shots.png"}
    language, flamingo = (manager.restore_params(finished / stage) for stage in stages["stages"])
    assert jax.tree.all(jax.tree.map(lambda a, b: (a.astype(b.dtype) == b).all(), language["lm"], flamingo["lm"]))


def test_again_by_the_config_of_the_run_it_changes_no_result_and_shows_it(finished, capfd):
    before = content(finished)
    assert main(["train", f"--workdir={finished}"]) == 0
    assert content(finished) == before
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].split() == ["held-out", "task", "2", "shots", "chance"]
    assert lines[2].startswith("digits accuracy ") and lines[3].startswith("digits accuracy, images swapped ")
    assert lines[-1] == f"pictures: {', '.join(f'{finished}/flamingo/{n}.png' for n in ('loss', 'samples', 'shots'))}"


def test_a_longer_run_continues(finished, train, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished, workdir)
    code, _ = train(workdir, "--config.language.total_steps=3", "--config.language.log_every=1")
    assert code == 0 and manager.steps(workdir / "language") == [2, 3]
    assert [row["step"] for row in read_rows(workdir / "language") if "loss" in row] == [2, 3]     # the last of each


@pytest.mark.parametrize("override, code, words", [
    ("optimizer.lrr=1", USAGE, "unknown field 'flamingo.optimizer.lrr'.*did you mean 'lr'"),
    ("system=flamigo", USAGE, "flamingo.system='flamigo' is not a system.*did you mean 'flamingo'"),
    ("mesh.fsdp=64", FAILED, "mesh fsdp=64 needs 64 devices but 8 are visible"),
    ("rules=(('vison/.*','frozen'),('.*','main'))", USAGE, "'vison/.*'.*decides about no parameter"),
    ("init_from.lm=langage", USAGE, "did you mean 'language'"),
    ("data.prepare.first_light.options.pages=3", FAILED, "first_light holds another data set .pages=16, wanted 3.;"),
    ("init_from.lm=/not/there", USAGE, "flamingo: init_from names /not/there, which holds neither a checkpoint nor"),
    ("evals=({'name':'x','kind':'captioning','data':'/not/there'},)", FAILED, "/not/there/query.* does not exist"),
    ("evals[0].shots=(64,)", FAILED, "digits at 64 shots has prompts of up to .*256"),
    ("evals=({'name':'x','kind':'clasification','data':'y'},)", USAGE, "did you mean 'classification'"),
    ("data.sets.pages.batch_size=12", USAGE, "flamingo.data.sets.pages.batch_size=12 must .* try 8 or 16"),
    ("data.sets.pages.sources=({'path':'/not/there'},)", FAILED, "data path /not/there does not exist"),
    ("data.sets.pages.sources=({'path':'/proc'},)", FAILED, "data folder /proc holds no"),
])
def test_a_bad_config_is_one_message_and_leaves_no_trace(finished, train, tmp_path, override, code, words):
    got, message = train(tmp_path / "new", f"--config.flamingo.{override}")
    assert (got, message.count("\n")) == (code, 1) and re.match(f"mmjax: error: .*{words}", message), message
    assert not (tmp_path / "new").exists()


def test_another_config_is_refused_with_the_fields(finished, train):
    before = content(finished)
    code, message = train(finished, "--config.flamingo.optimizer.lr=0.5")
    assert code == USAGE and "flamingo holds a run of another config" in message
    assert message.splitlines()[-1].split() == ["optimizer.lr", "0.0003", "0.5"] and content(finished) == before


def test_a_truncated_checkpoint_is_named_and_kept(finished, train, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished, workdir)
    biggest = max((workdir / "flamingo/checkpoints/2/state").rglob("*"), key=lambda p: p.stat().st_size)
    biggest.write_bytes(biggest.read_bytes()[:100])
    before = content(workdir)
    code, message = train(workdir, "--config.flamingo.total_steps=3")
    assert code == FAILED and f"{biggest} has 100 bytes" in message and "delete that folder" in message
    assert {p: text for p, text in content(workdir).items() if p.name != "config.json"} == {
        p: text for p, text in before.items() if p.name != "config.json"}


def test_a_loss_that_is_not_finite_stops_the_run(train, tmp_path):
    code, message = train(tmp_path / "new", "--config.language.optimizer.lr=1e38", "--config.language.total_steps=4")
    assert code == FAILED and "is not finite" in message and "Lower optimizer.lr" in message
    assert not (tmp_path / "new" / "flamingo").exists()
