import dataclasses
import json
import os
import signal
import subprocess
import sys

import pytest

from mmjax.data.first_light import manifest


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    ways: tuple[int, int] = (2, 4)


def fill(work):
    (work / "sub").mkdir()
    (work / "sub" / "a").write_bytes(b"12345")
    return {"sub/a": 5}, {"task": [" yes", " no"]}


def never(work):
    raise AssertionError("built again")


def build(folder, config=None, fill=fill, version=1):
    return manifest.build_once(folder, "toy", version, config or Config(), fill)


def test_manifest_is_read_back(tmp_path):
    made = build(tmp_path / "d")
    assert manifest.read_manifest(tmp_path / "d") == made
    assert made.records == {"sub/a": 5} and made.config == {"seed": 0, "ways": [2, 4]}


def test_second_build_does_nothing(tmp_path):
    made = build(tmp_path / "d")
    assert build(tmp_path / "d", fill=never) == made


def test_empty_folder_is_filled(tmp_path):
    (tmp_path / "d").mkdir()
    build(tmp_path / "d")
    assert (tmp_path / "d" / "sub" / "a").exists()


@pytest.mark.parametrize(("kwargs", "message"), [
    (dict(config=Config(seed=1)), "seed=0, wanted 1"), (dict(version=2), "version=1, wanted 2")])
def test_another_data_set_is_refused_and_kept(tmp_path, kwargs, message):
    build(tmp_path / "d")
    with pytest.raises(ValueError, match=message):
        build(tmp_path / "d", **kwargs)
    build(tmp_path / "d", fill=never)


def test_damage_is_named(tmp_path):
    build(tmp_path / "d")
    file = tmp_path / "d" / "sub" / "a"
    file.write_bytes(b"12346")
    with pytest.raises(ValueError, match="changed or damaged; delete it"):
        build(tmp_path / "d", fill=never)
    file.unlink()
    with pytest.raises(ValueError, match="lacks sub/a"):
        build(tmp_path / "d", fill=never)


def test_foreign_folder_and_broken_manifest_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not a built data set"):
        build(tmp_path, fill=never)
    for text in ("{", json.dumps({"name": "toy"}), "[]"):
        (tmp_path / manifest.FILE).write_text(text)
        with pytest.raises(ValueError, match="is not a manifest"):
            build(tmp_path, fill=never)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_missing_manifest_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a built data set; build it first"):
        manifest.read_manifest(tmp_path)


def test_failed_build_leaves_nothing(tmp_path):
    def fail(work):
        fill(work)
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "d", fill=fail)
    assert not list(tmp_path.iterdir())


def test_the_second_of_two_builders_takes_what_the_first_made(tmp_path):
    def overtaken(work):
        build(tmp_path / "d")
        return fill(work)
    assert build(tmp_path / "d", fill=overtaken) == manifest.read_manifest(tmp_path / "d")
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


SLOW = """
import dataclasses, sys, time
from pathlib import Path
from mmjax.data.first_light.manifest import build_once
@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
def fill(work):
    (work / "a").write_bytes(b"half of it")
    print("writing", flush=True)
    time.sleep(60)
build_once(sys.argv[1], "toy", 1, Config(), fill)
"""


def test_killed_build_leaves_nothing_that_looks_finished(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path / "d")], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "d").exists()
    assert not any(p.name == manifest.FILE for p in tmp_path.rglob("*"))
    build(tmp_path / "d")
    build(tmp_path / "d", fill=never)
