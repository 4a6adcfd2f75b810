"""Plain text to shards."""

import json

import pytest

pytest.importorskip("apache_beam", reason="needs the extra [pipelines]")

from data_pipelines import shards  # noqa: E402
from data_pipelines.plain_text import pipeline  # noqa: E402
from mmjax.data.sources import open_source  # noqa: E402


def test_plain_text(tmp_path):
    good = " ".join(f"word{k}" for k in range(30))
    with open(tmp_path / "a.jsonl", "w", encoding="utf-8") as f:
        for text in (good, "too short", "again and " * 40, f"{good} naïve 東京"):
            f.write(json.dumps({"text": text}) + "\n")
    pipeline.main(["--input", str(tmp_path / "*.jsonl"), "--output", str(tmp_path / "out"), "--workers", "1"])
    assert [d.segments[0].text for d in open_source("array_record", tmp_path / "out")] == [good, f"{good} naïve 東京"]
    assert shards.read_manifest(str(tmp_path / "out")).counts["documents"] == {
        "read": 4, "kept": 2, "too few words": 1, "repeats itself": 1}
