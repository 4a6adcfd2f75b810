import pytest

from mmjax.data.first_light.captions import LOOKS, CaptionsConfig, held_out_looks, write_captions
from mmjax.data.first_light.pages import read_page
from mmjax.data.sources import open_source

CONFIG = CaptionsConfig(scenes=60, queries=20)


@pytest.mark.quick
def test_training_shows_nothing_held_out_and_queries_do(tmp_path):
    manifest = write_captions(tmp_path / "d", CONFIG, progress=False)
    held_out = held_out_looks(CONFIG)
    assert len(held_out) == 12 and len(LOOKS) == 64
    texts = {}
    for name in ("train", "looks/query", "known/query", "scenes/query"):
        source = open_source("array_record", tmp_path / "d" / f"{name}.array_record")
        texts[name] = [read_page(source[i])[0].answer for i in range(len(source))]
    assert {name: len(t) for name, t in texts.items()} == {
        "train": 60, "looks/query": 20, "known/query": 20, "scenes/query": 20}
    plain = [t.replace("stars", "star").replace("crosses", "cross").rstrip("s") for t in texts["train"]]
    assert not any(look in text for text in plain for look in held_out)
    assert set(texts["looks/query"]) <= held_out and not held_out & set(texts["known/query"])
    assert manifest == write_captions(tmp_path / "d", CONFIG, progress=False)


@pytest.mark.quick
def test_too_many_held_out_are_refused():
    with pytest.raises(ValueError, match="held_out=64 must be at least 1 and below the 64"):
        CaptionsConfig(held_out=64)
