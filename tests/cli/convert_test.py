"""Published weights into a run, and what the run trained out of it again."""

import textwrap

import jax
import numpy as np
import pytest

from mmjax.checkpoint import manager
from mmjax.checkpoint.convert.adapter import read_adapter
from mmjax.checkpoint.convert.pretrained import Pretrained, from_pretrained, save_pretrained, template
from mmjax.checkpoint.paths import flatten
from mmjax.cli.main import FAILED, USAGE, main
from mmjax.layers import BlockConfig
from mmjax.layers.low_rank import is_adapter
from mmjax.parts.decoder import DecoderConfig

LM = DecoderConfig(262, 2, BlockConfig(16, 2, 24, norm="rms", use_bias=False, activation="swiglu", norm_eps=1e-6),
                   max_positions=256, tie_embeddings=False)
CONFIG = """
    import ml_collections

    DATA = {data!r}

    def get_config():
        c = ml_collections.ConfigDict()
        c.system = "language"
        block = dict(embed_dim=16, num_heads=2, mlp_dim=24, norm="rms", use_bias=False, activation="swiglu",
                     norm_eps=1e-6)
        c.model = dict(lm=dict(vocab_size=262, num_layers=2, block=block, max_positions=256, tie_embeddings=False,
                               remat="none"))
        sources = (dict(path=DATA + "/train/text.array_record"),)
        options = dict(image_size=16, scenes=24, crops=8, pages=16, texts=40, queries=6, page_length=64)
        c.data = dict(sets=dict(text=dict(sources=sources, batch_size=8, seq_len=64)),
                      prepare=dict(first_light=dict(folder=DATA, options=options)))
        c.init_from = dict(lm={weights!r})
        c.rules = ((".*attention/(q|v)/kernel", "lora"), (".*", "frozen"))
        c.groups = dict(lora=dict(lora_rank=2, lora_alpha=8.0))
        c.frozen_dtype = "float32"
        c.optimizer = dict(lr=1e-2)
        c.total_steps = 2
        return c
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("weights") / "llama", np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.1 * rng.normal(size=x.shape).astype(np.float32), template(LM)[0])
    save_pretrained(folder, Pretrained("llama", LM, params, {}))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_folder, weights):
    """A run that trained adapters beside published weights."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "lora.py").write_text(textwrap.dedent(CONFIG.format(data=str(data_folder), weights=str(weights))))
    assert main(["train", f"--config={folder / 'lora.py'}", f"--workdir={folder / 'run'}"]) == 0
    return folder / "run"


def test_adapters_train_beside_published_weights_and_leave_as_a_folder(run, weights, tmp_path, capsys):
    params = flatten(manager.restore_params(run))
    for path, x in flatten(from_pretrained(weights).params).items():
        np.testing.assert_array_equal(params[f"lm/{path}"], x, err_msg=path)
    adapters = {path: x for path, x in params.items() if is_adapter(path)}
    assert len(adapters) == 4 and all(np.any(x) for x in adapters.values())
    command = ["convert", f"--workdir={run}", "--adapter", "--format=llama", f"--to={tmp_path / 'adapter'}"]
    assert main(command) == 0
    assert "256 parameters of 4 arrays" in capsys.readouterr().out
    again = read_adapter(tmp_path / "adapter", manager.restore_params(run), type("Config", (), {"lm": LM}))
    assert again.keys() == adapters.keys()
    for path, x in adapters.items():
        np.testing.assert_array_equal(again[path], x)


def test_a_folder_is_described_and_written_in_another_dtype(weights, tmp_path, capsys):
    assert main(["convert", f"--folder={weights}", "--dtype=bfloat16", f"--to={tmp_path / 'half'}"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("llama: 12,816 parameters in bfloat16, 0.00 GB") and "wrote" in said
    half = flatten(from_pretrained(tmp_path / "half", "bfloat16").params)
    for path, x in flatten(from_pretrained(weights, "bfloat16").params).items():
        np.testing.assert_array_equal(half[path], x)


@pytest.mark.parametrize("flags, code, words", [
    ([], USAGE, "give either --folder, published weights, or --workdir, a run"),
    (["--workdir=x"], USAGE, "--workdir needs --format, one of llama"),
    (["--folder=/not/there"], FAILED, "/not/there is not a folder; give the one that holds config.json"),
    (["--folder=x", "--adapter"], USAGE, "--adapter needs --workdir and --to"),
])
def test_mistakes_are_named(flags, code, words, capsys):
    assert main(["convert", *flags]) == code
    assert words in capsys.readouterr().err
