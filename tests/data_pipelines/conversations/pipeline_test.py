"""Conversations in LLaVA's JSON to shards."""

import io
import json

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("apache_beam", reason="needs the extra [pipelines]")

from data_pipelines import shards  # noqa: E402
from data_pipelines.conversations import pipeline  # noqa: E402
from mmjax.data.sources import open_source  # noqa: E402


def png(seed: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_conversations(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(0))
    (tmp_path / "images" / "cut.png").write_bytes(png(1)[:300])
    turn = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "Noise."}]
    (tmp_path / "talks.json").write_text(json.dumps([
        {"id": "0", "image": "a.png", "conversations": turn}, {"id": "1", "image": "cut.png", "conversations": turn},
        {"id": "2", "conversations": [{"from": "human", "value": "Hello?"}]},
        {"id": "3", "image": "gone.png", "conversations": turn}]))
    argv = ["--input", str(tmp_path / "talks.json"), "--images", str(tmp_path / "images"), "--output",
            str(tmp_path / "out"), "--workers", "1"]
    with pytest.raises(ValueError, match="1 of 4 records are damaged"):
        pipeline.main(argv)
    pipeline.main([*argv, "--max_damaged", "0.5"])
    (document,) = open_source("array_record", tmp_path / "out")
    assert document.segments[0].data == png(0)
    assert [(s.text.strip(), s.weight) for s in document.segments[1:]] == [("What is it?", 0.0), ("Noise.", 1.0)]
    assert shards.read_manifest(str(tmp_path / "out")).counts["documents"] == {
        "read": 4, "kept": 1, "no answer": 1, "image truncated or damaged": 1, "damaged": 1}
