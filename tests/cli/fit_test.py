"""A stage whose data and model do not fit is refused before anything runs."""

import pytest

from mmjax.cli import arguments, stages
from mmjax.cli.fit import check_fit
from mmjax.training.structure import ConfigError

KOSMOS = """
import ml_collections

def get_config():
    c = ml_collections.ConfigDict()
    c.system = "kosmos1"
    c.total_steps = 1
    c.model = dict(
        vision=dict(image_size=16, patch_size=8, num_layers=1, block=dict(embed_dim=8, num_heads=2, mlp_dim=16)),
        connector=dict(input_dim=8, embed_dim=16, num_latents=4, num_heads=2),
        lm=dict(vocab_size=262, num_layers=1, block=dict(embed_dim=16, num_heads=2, mlp_dim=32)))
    c.data = dict(sets=dict(pages=dict(
        sources=(dict(path="nowhere"),), batch_size=2, seq_len=64, images_per_row=4, image=dict(size=16),
        template="kosmos1", template_options=dict(num_slots=4))))
    return c
"""


@pytest.fixture
def kosmos(tmp_path):
    (tmp_path / "kosmos.py").write_text(KOSMOS)
    return tmp_path / "kosmos.py"


def check(file, *overrides):
    for name, config in stages.resolve(arguments.load_config([f"--config={file}", *overrides])):
        check_fit(name, config)


@pytest.mark.quick
def test_what_fits_passes(config_file, kosmos):
    check(config_file)
    check(kosmos)


@pytest.mark.parametrize("override, words", [
    ("model.lm.vocab_size=200", "model.lm.vocab_size=200 is less than the 262 tokens"),
    ("data.tokenizer=/nowhere", "data.tokenizer: no tokenizer at /nowhere"),
    ("data.sets.pages.template=flamingo --config.data.sets.pages.template_options={}", "does not fit system 'kosmos1'"),
    ("data.sets.pages.image.size=32", "image.size=32 must equal model.vision.image_size=16"),
    ("data.sets.pages.template_options.num_slots=8", "num_slots=8 must equal model.connector.num_latents=4"),
    ("model.lm.max_positions=32", "documents of up to 64 tokens are longer than model.lm.max_positions=32"),
])
def test_what_does_not_fit_is_named(kosmos, override, words):
    with pytest.raises(ConfigError) as error:
        check(kosmos, *f"--config.{override}".split())
    assert words in str(error.value)


@pytest.mark.parametrize("override, words", [
    ("flamingo.data.sets.pages.frames=2", "frames=2 exceeds flamingo.model.resampler.num_frames=1"),
    ("language.data.sets.text.images_per_row=4", "language.data.sets.text.images_per_row=4, but the model has no"),
])
def test_the_stage_is_named(config_file, override, words):
    with pytest.raises(ConfigError) as error:
        check(config_file, f"--config.{override}")
    assert words in str(error.value)
