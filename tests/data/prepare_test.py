"""Building what a config asks for, once."""

import pytest

from mmjax.data.config import DataSetConfig, Source
from mmjax.data.prepare import DataConfig, Prepare, prepare
from mmjax.data.sources import open_source

OPTIONS = dict(image_size=16, pages=6, held_out_pages=2, compositions=[8, 8], glyphs=[8, 8], ways=[2, 3])


def config(folder, **options):
    sets = dict(pages=DataSetConfig((Source(f"{folder}/train"),), batch_size=1, seq_len=8))
    return DataConfig(sets, prepare=dict(bindings=Prepare(str(folder), OPTIONS | options)))


def test_it_builds_once_and_refuses_another_build_in_the_same_folder(tmp_path):
    folder = tmp_path / "bindings"
    made = prepare(config(folder), progress=False)[str(folder)]
    files = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    assert made.config["ways"] == [2, 3]
    assert all(len(open_source("array_record", folder / f)) == n for f, n in made.records.items())
    assert prepare(config(folder), progress=False)[str(folder)] == made
    with pytest.raises(ValueError, match="pages=6, wanted 7"):
        prepare(config(folder, pages=7), progress=False)
    assert files == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("item, words", [
    (dict(bindins=Prepare("x")), "'bindins', which is no builder; known: first_light, bindings"),
    (dict(bindings=Prepare("x", dict(paegs=3))), "bindings has no option 'paegs'; known: compositions, .*pages"),
    (dict(bindings=Prepare("x", dict(shots=[0, 2]))), r"shots=\(0, 2\)"),
])
def test_what_cannot_be_built_is_refused_with_the_config(item, words):
    with pytest.raises(ValueError, match=words):
        DataConfig(dict(pages=DataSetConfig((Source("x"),), 1, 8)), prepare=item)
