"""Evaluating a finished run again."""

import json
import shutil

from mmjax.cli.main import FAILED, USAGE, main


def test_it_finds_again_what_training_reported(finished, tmp_path, capsys):
    assert main(["evaluate", f"--workdir={finished}", f"--out={tmp_path}/out"]) == 0
    assert "digits accuracy" in capsys.readouterr().out
    folders = (tmp_path / "out", finished / "flamingo")
    again, then = (json.loads((folder / "eval.json").read_text()) for folder in folders)
    assert all(again[key] == then[key] for key in ("metrics", "evals", "step")) and then["step"] == 2
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"eval.json", "samples.png", "shots.png"}


def test_a_stage_without_evals_says_so(finished, capsys):
    assert main(["evaluate", f"--workdir={finished}", "--stage=language"]) == USAGE
    assert "has no evals; give --config with some" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_is_named(finished, tmp_path, capsys):
    shutil.copy(finished / "flamingo" / "config.json", tmp_path)
    assert main(["evaluate", f"--workdir={tmp_path}"]) == FAILED
    assert f"no checkpoint in {tmp_path}/checkpoints; train first" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_what_is_no_run_directory_is_named(tmp_path, finished, capsys):
    assert main(["evaluate", f"--workdir={finished.parent}/finishde"]) == USAGE
    assert f"did you mean '{finished}'" in capsys.readouterr().err
