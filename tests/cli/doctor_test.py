"""The report of this machine, and that it finds what is wrong."""

import collections
import importlib.metadata
import shutil

import jax
import pytest

from mmjax.cli import doctor
from mmjax.cli.main import main


@pytest.fixture
def all_extras_missing(monkeypatch):
    """Nothing but the core is installed."""
    core, real = set(doctor.requirements()[""]), importlib.metadata.version

    def version(name):
        if name not in core:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_a_healthy_machine(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"jax {jax.__version__}" in out and "8 x cpu" in out and "PROBLEM" not in out
    assert "a sum over 8 device(s) is right" in out and "differs from NumPy by" in out


def test_missing_extras_are_no_problem_and_say_how_to_get_them(all_extras_missing, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "check_attention", lambda: "skipped")
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "lacks jax-cuda13-plugin: pip install 'mmjax[cuda]'" in out and "lacks libtpu" in out
    assert "scikit-learn" in out and ": pip install 'mmjax[data]'" in out


def test_a_full_disk_and_a_wrong_device_are_problems(monkeypatch, capsys, tmp_path):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, 1e9))
    monkeypatch.setattr(doctor, "attention", lambda q, k, v, mask: v)
    assert main(["doctor", "--workdir", str(tmp_path / "not" / "there")]) == 1
    out = capsys.readouterr().out
    assert "PROBLEM    disk: 1.0 GB free at" in out and "PROBLEM    attention: attention differs" in out
