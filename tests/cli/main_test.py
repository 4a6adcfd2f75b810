"""The dispatcher: help without the weight of JAX, near names, exit codes, one message per error."""

import subprocess
import sys

import pytest

from mmjax.cli import config, main
from mmjax.training.loop import TrainingError
from mmjax.training.structure import ConfigError


@pytest.mark.quick
def test_help_lists_every_command_without_importing_jax():
    code = "import sys; from mmjax.cli.main import main; code = main(['--help']); assert code == 0, code; " \
           "heavy = {'jax', 'flax', 'numpy', 'grain'} & set(sys.modules); assert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, summary in main.COMMANDS.items():
        assert f"{name.ljust(8)}  {summary}" in done.stdout


def test_without_a_command_it_shows_the_help_and_fails(capsys):
    assert main.main([]) == main.USAGE
    assert "usage: mmjax <command>" in capsys.readouterr().out


@pytest.mark.parametrize("command, hint", [("tarin", "did you mean 'train'?"), ("xyz", "choose from train, evaluate")])
def test_an_unknown_command_brings_a_hint(command, hint, capsys):
    assert main.main([command]) == main.USAGE
    assert capsys.readouterr().err.startswith(f"mmjax: error: unknown command {command!r}; {hint}")


@pytest.mark.parametrize("error, code, text", [
    (ValueError("value 3, rule, fix"), main.FAILED, "mmjax: error: value 3, rule, fix\n"),
    (FileNotFoundError(2, "No such file or directory", "a.png"), main.FAILED,
     "mmjax: error: a.png: No such file or directory\n"),
    (TrainingError("the loss is not finite"), main.FAILED, "mmjax: error: the loss is not finite\n"),
    (ConfigError("no field"), main.USAGE, "mmjax: error: no field\n"),
    (ImportError("install scikit-learn"), main.FAILED, "mmjax: error: install scikit-learn\n"),
    (KeyboardInterrupt(), main.INTERRUPTED, "mmjax: error: interrupted\n"),
])
def test_an_error_is_one_message(monkeypatch, capsys, error, code, text):
    def run(argv):
        raise error

    monkeypatch.setattr(config, "run", run)
    assert main.main(["config"]) == code and capsys.readouterr().err == text


def test_debug_shows_the_traceback_and_a_slip_of_ours_always_does(monkeypatch, capsys):
    def run(argv):
        raise ({"slip": TypeError, "user": ValueError}[argv[0]])("text")

    monkeypatch.setattr(config, "run", run)
    assert main.main(["config", "user", "--debug"]) == main.FAILED
    assert "Traceback" in capsys.readouterr().err
    assert main.main(["config", "slip"]) == main.FAILED
    assert "Traceback" in capsys.readouterr().err
