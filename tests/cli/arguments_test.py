"""Command lines to configs: overrides that fit, and messages for those that do not."""

import argparse
import textwrap

import pytest

from mmjax.cli import arguments
from mmjax.training.structure import ConfigError

CONFIG = """
    import ml_collections

    def get_config(size="small"):
        c = ml_collections.ConfigDict(dict(size=size, steps=3, lr=1e-3, clip=None, shuffle=True, shots=(0, 4)))
        c.model, c.evals = dict(dim=16), (dict(a=3),)
        if size == "broken":
            c.model.dim = 1 // 0
        return c if size != "nothing" else None
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "tiny.py").write_text(textwrap.dedent(CONFIG))
    return tmp_path / "tiny.py"


@pytest.mark.quick
def test_overrides_keep_the_type_of_the_field(file):
    overrides = ["--config.steps=5", "--config.lr", "2", "--noconfig.shuffle", "--config.shots=(1,2)",
                 "--config.clip=0.5", "--config.model.dim=8", "--config.evals[0].a=4"]
    config_args, others = arguments.split_config([f"--config={file}:large", *overrides, "--workdir", "out"])
    c = arguments.load_config(config_args).to_dict()
    assert c == dict(size="large", steps=5, lr=2.0, shuffle=False, shots=(1, 2), clip=0.5, model=dict(dim=8),
                     evals=({"a": 4},))
    assert isinstance(c["lr"], float) and others == ["--workdir", "out"]


def test_a_field_left_to_its_default_can_be_overridden(file):
    c = arguments.load_config([f"--config={file}", "--config.mesh.fsdp=8", "--config.optimizer.name=lion"])
    assert c.mesh.fsdp == 8 and c.optimizer.name == "lion" and c.is_locked


def test_a_negative_value_may_stand_apart_but_a_flag_is_no_value():
    argv = ["--config", "a.py", "--config.mesh.data", "-1", "--config.shuffle", "--workdir", "out"]
    assert arguments.split_config(argv) == (
        ["--config=a.py", "--config.mesh.data=-1", "--config.shuffle"], ["--workdir", "out"])


@pytest.mark.parametrize("args, words", [
    (["--config={}", "--config.steps=many"], ["--config.steps=many", "int"]),
    (["--config={}", "--config.lr.x=1"], ["--config.lr.x=1: cannot override Attribute", "lr.x"]),
    (["--config={}", "--config.evals[0].b=1"], ["--config.evals[0].b=1: cannot override b (in an item"]),
    (["--config={}:broken"], ["tiny.py:8: ZeroDivisionError"]),
    (["--config={}:nothing"], ["must return a ConfigDict, not a NoneType"]),
    (["--config={}x"], ["no config file", "did you mean", "tiny.py'"]),
    (["--config.steps=3", "--config={}"], ["--config.steps=3 stands where", "name the file before"]),
])
def test_what_does_not_fit_is_named(file, args, words):
    with pytest.raises(ConfigError) as error:
        arguments.load_config([arg.format(file) for arg in args])
    assert all(word in str(error.value) for word in words), error.value


def test_a_syntax_error_has_its_line(tmp_path):
    (tmp_path / "bad.py").write_text("a = 1\ndef get_config(:\n")
    with pytest.raises(ConfigError, match=r"bad\.py:2: "):
        arguments.load_config([f"--config={tmp_path}/bad.py"])


def test_an_unknown_flag_brings_the_nearest_one():
    parser = argparse.ArgumentParser(prog="mmjax train")
    parser.add_argument("--workdir")
    with pytest.raises(ConfigError, match="mmjax train has no flag '--workdri'.*did you mean '--workdir'"):
        arguments.parse(parser, ["--workdri=x"])
