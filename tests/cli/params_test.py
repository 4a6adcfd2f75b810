"""The table of parameters, at sizes that no machine here could hold."""

import textwrap

import pytest

from mmjax.cli.main import USAGE, main

CONFIG = """
    import ml_collections

    def get_config(dim):
        c = ml_collections.ConfigDict()
        c.system = "language"
        block = dict(embed_dim=int(dim), num_heads=64, mlp_dim=4 * int(dim))
        c.model = dict(lm=dict(vocab_size=32_000, num_layers=80, block=block, max_positions=2048))
        c.data = dict(sets=dict(text=dict(sources=(dict(path="text.array_record"),), batch_size=256, seq_len=2048)))
        c.total_steps = 10
        c.mesh = dict(fsdp=32, model=8)
        c.rules = (("lm/token_embed/.*", "frozen"), (".*", "main"))
        return c
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "big.py").write_text(textwrap.dedent(CONFIG))
    return f"--config={tmp_path}/big.py:8192"


def test_the_table_of_64_billion_parameters(config, capsys):
    assert main(["params", config]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "config: system language, mesh fsdp=32 x model=8"
    assert lines[1].split() == ["path", "shape", "dtype", "sharding", "group", "trainable"]
    (embed,) = [line for line in lines if line.startswith("lm/token_embed/")]
    assert embed.split() == ["lm/token_embed/table", "32000x8192", "bfloat16", "(model,", "fsdp)", "frozen", "no"]
    total = 80 * (12 * 8192**2) + 32_000 * 8192
    shown = int(lines[-2].split()[0].replace(",", ""))
    assert total < shown < 1.01 * total and f"frozen {32_000 * 8192:,}" in lines[-2]


@pytest.mark.parametrize("override, words", [
    ("--config.mesh.data=-1 --devices=300", "needs 256 devices but 300"),
    ("--config.mesh.model=48", "must be a multiple of the 48 devices on mesh axis model"),
    ("--config.rules=(('lm/token_embed/.*','frozen'),)", "have no rule"),
    ("--config.system=langauge", "did you mean 'language'"),
    ("--stage=language", "there is no stage 'language'"),
])
def test_what_does_not_fit_is_one_message(config, override, words, capsys):
    assert main(["params", config, *override.split()]) != 0
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_a_config_is_asked_for(capsys):
    assert main(["params"]) == USAGE
    assert "--config=FILE.py" in capsys.readouterr().err
