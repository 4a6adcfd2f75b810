import dataclasses
import json

import pytest

from mmjax.data.config import DataSetConfig, LoaderConfig, Source
from mmjax.data.templates import make_template

SOURCES = (Source("data"),)


@pytest.mark.parametrize("settings, message", [
    (dict(sources=()), "at least one source"),
    (dict(batch_size=0), "batch_size=0 must be at least 1"),
    (dict(seq_len=1), "seq_len=1 must be at least 2"),
    (dict(images_per_row=-1), "images_per_row=-1"),
    (dict(frames=0), "frames=0"),
    (dict(loss_weight=float("nan")), "loss_weight=nan"),
    (dict(max_tokens=17), "max_tokens=17 is more than seq_len=16"),
    (dict(max_images=1), "max_images=1 is more than images_per_row=0"),
    (dict(too_long="cut"), "too_long='cut' is unknown; known: truncate, window, drop"),
    (dict(template="flamngo"), "template 'flamngo' is unknown; did you mean 'flamingo'"),
    (dict(template_options=dict(p_next=1)), "p_next=1 needs cross_attention"),
])
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        DataSetConfig(**dict(sources=SOURCES, batch_size=2, seq_len=16) | settings)


def test_bad_sources_and_loaders():
    with pytest.raises(ValueError, match="'a' weight=0 must be above 0"):
        Source("a", 0)
    with pytest.raises(ValueError, match="at least one data set"):
        LoaderConfig({})
    with pytest.raises(ValueError, match="workers=-1"):
        LoaderConfig(dict(a=DataSetConfig(SOURCES, 2, 16)), workers=-1)
    with pytest.raises(ValueError, match="max_skipped=1.5 must be a share from 0 to 1, and watchdog=120.0"):
        LoaderConfig(dict(a=DataSetConfig(SOURCES, 2, 16)), max_skipped=1.5)
    with pytest.raises(ValueError, match="format 'array_recrod' is unknown"):
        Source("a", format="array_recrod")
    with pytest.raises(ValueError, match="has no option 'shards'"):
        Source("a", options=dict(shards=3))


def test_configs_are_plain_values(tmp_path):
    config = DataSetConfig(SOURCES, 2, 16, template="flamingo", template_options=dict(p_next=0.5))
    assert config.make_template() == make_template("flamingo", p_next=0.5)
    loader = LoaderConfig(dict(pages=config), specials=("<s>",))
    assert json.loads(json.dumps(dataclasses.asdict(loader)))["sets"]["pages"]["template_options"] == {"p_next": 0.5}
    assert loader.make_tokenizer().special == {"<s>": 256}
    loader.make_tokenizer().save(tmp_path)
    again = dataclasses.replace(loader, tokenizer=str(tmp_path), specials=("<s>", "<image>")).make_tokenizer()
    assert again.special == {"<s>": 256, "<image>": 257}
