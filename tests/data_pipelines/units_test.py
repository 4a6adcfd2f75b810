"""Units are done once, whole, and again when something of them is missing or their input is another."""

import functools
import json
from pathlib import Path

import pytest

pytest.importorskip("apache_beam", reason="needs the extra [pipelines]")

from data_pipelines import files, launch, units  # noqa: E402

NAMES = ("a", "b", "c")


def work(unit: units.Unit, folder: Path, log: str, broken: str = ""):
    with open(log, "a", encoding="utf-8") as f:
        f.write(unit.name)
    if unit.name == broken:
        (folder / "half").write_text("half")
        raise OSError("the machine is gone")
    (folder / "made").write_text(unit.name * 3)
    return {f"{unit.name}.txt": folder / "made"}, {"things": {"done": 1}}


def do(tmp_path, inputs=("1", "1", "1"), broken="", workers=1):
    """(names done in this run, records, tally)"""
    log = tmp_path / "log"
    log.write_text("")
    todo = [units.Unit(name, ((f"in/{name}", i),)) for name, i in zip(NAMES, inputs, strict=True)]
    try:
        records, tally = units.do_units(todo, str(tmp_path / "out"), "stage", functools.partial(
            work, log=str(log), broken=broken), launch.beam_options(workers))
    finally:
        done = "".join(sorted(log.read_text()))
    return done, records, tally


def made(tmp_path) -> dict[str, str]:
    return {f.name: f.read_text() for f in (tmp_path / "out").glob("*")if f.is_file()}


def test_a_second_run_does_nothing(tmp_path):
    done, records, tally = do(tmp_path)
    assert done == "abc" and tally == {"made": 3, "kept": 0}
    assert made(tmp_path) == {"a.txt": "aaa", "b.txt": "bbb", "c.txt": "ccc"}
    assert [r["unit"][0] for r in records] == list(NAMES)
    assert records[0]["files"]["a.txt"]["bytes"] == 3 and records[0]["counts"] == {"things": {"done": 1}}
    done, again, tally = do(tmp_path)
    assert done == "" and again == records and tally == {"made": 0, "kept": 3}


def test_what_is_missing_or_other_is_done_again(tmp_path):
    do(tmp_path)
    out = tmp_path / "out"
    (out / "a.txt").unlink()
    assert do(tmp_path)[0] == "a"
    (out / "b.txt").write_text("b")                         # cut
    assert do(tmp_path)[0] == "b"
    (out / "work/stage/c.json").write_text('{"unit"')       # cut
    assert do(tmp_path)[0] == "c"
    assert do(tmp_path, inputs=("1", "2", "1"))[0] == "b"
    assert made(tmp_path) == {"a.txt": "aaa", "b.txt": "bbb", "c.txt": "ccc"}


def test_a_unit_that_fails_leaves_nothing_and_the_others_stand(tmp_path):
    with pytest.raises(Exception, match="the machine is gone"):
        do(tmp_path, broken="b")
    there = set(made(tmp_path))
    assert there <= {"a.txt", "c.txt"} and not list((tmp_path / "out").rglob("*partial*"))
    done, records, tally = do(tmp_path)
    assert "b" in done and tally["kept"] == len(there) and len(records) == 3


def test_an_upload_that_is_cut_short_leaves_the_old_file(tmp_path, monkeypatch):
    path = str(tmp_path / "file")
    files.write(path, b"old")
    monkeypatch.setattr(files.shutil, "copyfileobj", lambda a, b, n: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        files.write(path, b"new")
    assert files.read(path) == b"old"


def test_find_names_the_pattern_that_matches_nothing(tmp_path):
    files.write(str(tmp_path / "a.gz"), b"12")
    assert files.find([str(tmp_path / "*.gz")]) == [(str(tmp_path / "a.gz"), 2)]
    with pytest.raises(FileNotFoundError, match="no file matches.*xyz"):
        files.find([str(tmp_path / "*.gz"), str(tmp_path / "*.xyz")])


def test_a_file_is_read_as_it_is_whatever_its_name(tmp_path):
    files.write(str(tmp_path / "not.gz"), b"plain")
    assert files.read(str(tmp_path / "not.gz")) == b"plain"


def test_records_are_readable_json(tmp_path):
    do(tmp_path)
    record = json.loads((tmp_path / "out/work/stage/a.json").read_text())
    assert record["unit"] == ["a", [["in/a", "1"]], []]
