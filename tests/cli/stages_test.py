"""Stages from config files and run directories, and runs that do not match."""

import dataclasses
import json

import pytest

from mmjax.cli import arguments, stages, trained
from mmjax.cli.main import main
from mmjax.data import templates
from mmjax.training.structure import ConfigError


@pytest.fixture
def resolved(config_file):
    return stages.resolve(arguments.load_config([f"--config={config_file}"]))


def test_the_printed_config_is_read_back_as_the_same_stages(config_file, resolved, tmp_path, capsys):
    assert main(["config", f"--config={config_file}"]) == 0
    (tmp_path / "config.json").write_text(capsys.readouterr().out)
    assert stages.from_run(tmp_path) == resolved
    stages.write(resolved, tmp_path / "new")
    assert stages.from_run(tmp_path / "new") == resolved


def test_a_single_stage_has_no_name(resolved, tmp_path):
    flat = (("", resolved[0][1]),)
    (tmp_path / "config.json").write_text(stages.to_json(flat))
    assert stages.from_run(tmp_path) == flat
    stages.write(flat, tmp_path / "left_to_the_loop")
    assert not (tmp_path / "left_to_the_loop").exists()


def test_a_workdir_of_other_stages_is_refused(resolved, tmp_path):
    stages.write(resolved, tmp_path)
    stages.check_same_run(resolved, tmp_path)
    with pytest.raises(ConfigError, match=r"stages \['language', 'flamingo'\], not \[''\]"):
        stages.check_same_run((("", resolved[0][1]),), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file; choose a folder"):
        stages.check_same_run(resolved, tmp_path / "file")


def test_a_damaged_config_is_named(resolved, tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="config.json is not JSON"):
        stages.from_run(tmp_path)
    values = json.loads(stages.to_json(resolved))
    values["language"]["total_step"] = values["language"].pop("total_steps")
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="config.json: unknown field 'language.total_step'"):
        stages.from_run(tmp_path)


def test_prompts_follow_the_first_data_set_of_the_system(resolved):
    (_, language), (_, flamingo) = resolved
    assert trained.make_writer(language).template == templates.make_template("language")
    sets = {"text": language.data.sets["text"], **flamingo.data.sets}
    mixed = dataclasses.replace(flamingo, data=dataclasses.replace(flamingo.data, sets=sets))
    writer = trained.make_writer(mixed)
    assert writer.template.cross_attention and writer.image.size == 16
    assert writer.end_ids == (writer.tokenizer.id("<EOC>"),)
