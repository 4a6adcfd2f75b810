import io
import json

import numpy as np
import pytest
from PIL import Image as pil

from mmjax.cli import data
from mmjax.cli.main import main
from mmjax.data.documents import Document, Image, Text, write_documents
from mmjax.training.structure import ConfigError

CONFIG = """
import dataclasses
import ml_collections
from mmjax.data.preprocess import image_spec
def get_config():
    image = dataclasses.asdict(image_spec("clip-224", draft=1.0))
    source = dict(path={path!r})
    pages = dict(sources=(source,), batch_size=4, seq_len=64, images_per_row=2, image=image,
                 template="flamingo")
    text = dict(sources=(dict(path={text!r}),), batch_size=8, seq_len=64)
    return ml_collections.ConfigDict(dict(
        system="language", model=dict(lm=dict(vocab_size=8, num_layers=1, max_positions=8, remat="none",
        block=dict(embed_dim=4, num_heads=1, mlp_dim=4))), total_steps=1,
        rules=((".*", "main"),), optimizer=dict(name="adamw", lr=1e-3),
        data=dict(sets=dict(pages=pages, text=text))))
"""


@pytest.fixture
def source(tmp_path):
    out = io.BytesIO()
    pil.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(out, "JPEG")
    write_documents(tmp_path / "pairs.array_record", [Document((Image(out.getvalue()), Text(f"number {k}")))
                                                      for k in range(40)])
    write_documents(tmp_path / "text.array_record", [Document((Text(f"text {k}"),)) for k in range(40)])
    return str(tmp_path / "pairs.array_record")


@pytest.fixture
def config(source, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(path=source, text=source.replace("pairs", "text")))
    return f"--config={path}"


SMALL = ("--seq-len=64", "--images=2", "--image=clip-224")


def test_peek_draws_a_source(source, tmp_path, capsys):
    assert main(["data", "peek", f"--path={source}", *SMALL, "--rows=1", f"--out={tmp_path}/a/peek.png"]) == 0
    assert capsys.readouterr().out == f"saved {tmp_path}/a/peek.png\n"
    sheet = pil.open(tmp_path / "a" / "peek.png")
    assert sheet.width == 1280 and 150 < sheet.height < 600


def test_stats_of_one_data_set_of_a_config(config, tmp_path, capsys):
    assert main(["data", "stats", config, "--set=pages", "--rows=20", f"--out={tmp_path}/stats.json"]) == 0
    text = capsys.readouterr().out
    assert "rows             20, of 64 tokens and 2 images" in text and "document images  1: 100.0%" in text
    values = json.loads((tmp_path / "stats.json").read_text())
    assert list(values) == ["pages"] and values["pages"]["rows"] == 20
    assert values["pages"]["sources"]["pairs"]["images"] == values["pages"]["images"] > 0


@pytest.mark.quick
def test_verify_says_what_is_bad_and_fails(config, source, tmp_path, capsys):
    assert main(["data", "verify", config]) == 0
    assert "2 files, 0 of them bad; 80 documents can be used" in capsys.readouterr().out
    write_documents(tmp_path / "text.array_record", [Document((Image(b"no"),))])
    assert main(["data", "verify", config]) == 1
    assert "damaged: 1 x not a JPEG" in capsys.readouterr().out


def test_bench_times_a_source(source, capsys):
    assert main(["data", "bench", f"--path={source}", *SMALL, "--rows=2", "--seconds=0.1", "--threads=1"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "0 workers, 1 threads" in first and "images/s" in first
    assert second.startswith("array_record, one thread: plan ") and "not decoding" in second


@pytest.mark.parametrize("argv, message", [
    (["stats"], "no config given"),
    (["stats", "--path=x", "--option=y"], "--option y must be NAME=VALUE"),
    (["stats", "--path=x", "--workdir=y"], "give one of them"),
    (["stats", "CONFIG", "--set=page"], "has no data set 'page'; known: pages, text; did you mean"),
    (["stats", "--path=x", "--format=array-record"], "did you mean 'array_record'"),
    (["stats", "--path=x", "--image=clip"], "image preset 'clip' is unknown"),
    (["stats", "--path=x", "--option=shards=3"], "has no option 'shards'"),
])
def test_mistakes(argv, message, config):
    with pytest.raises((ConfigError, ValueError), match=message):
        data.run([a.replace("CONFIG", config) for a in argv])
