"""A tiny two-stage Flamingo config, its data, and one finished run of it, shared by the tests of the commands."""

import textwrap

import pytest

from mmjax.cli.main import main

CONFIG = """
    import ml_collections

    DATA = {data!r}

    def get_config():
        c = ml_collections.ConfigDict()
        c.stages = ("language", "flamingo")
        c.language = dict(system="language", model=dict(lm=lm()), data=data(text=["text"]), total_steps=2)
        c.flamingo = dict(
            system="flamingo", model=flamingo(), data=data(pages=["digits_pages"], pairs=["digits_pairs"]),
            init_from=dict(lm="language"), rules=(("lm/.*", "frozen"), (".*", "main")), total_steps=2,
            evals=(dict(name="digits", kind="classification", data=DATA + "/digits", shots=(2,), num_queries=4,
                        batch_size=4),))
        return c

    def data(**sets):
        sets = {{name: dict(sources=tuple(dict(path=f"{{DATA}}/train/{{f}}.array_record") for f in files),
                            batch_size=8, seq_len=64, image=dict(size=16), loss_weight=0.2 if name == "pairs" else 1.0,
                            template="language" if name == "text" else "flamingo",
                            images_per_row=0 if name == "text" else 4) for name, files in sets.items()}}
        options = dict(image_size=16, scenes=24, crops=8, pages=16, texts=40, queries=6, page_length=64)
        return dict(sets=sets, prepare=dict(first_light=dict(folder=DATA, options=options)))

    def lm():
        block = dict(embed_dim=16, num_heads=2, mlp_dim=32)
        return dict(vocab_size=262, num_layers=1, block=block, max_positions=256, remat="none")

    def flamingo():
        block = dict(embed_dim=8, num_heads=2, mlp_dim=16)
        vision = dict(image_size=16, patch_size=8, num_layers=1, block=block, remat="none")
        resampler = dict(input_dim=8, embed_dim=8, num_latents=2, num_layers=1, num_heads=2, head_dim=4, mlp_dim=16,
                         num_frames=1)
        return dict(vision=vision, resampler=resampler, lm=lm(), xattn_every=1,
                    xattn=dict(embed_dim=16, visual_dim=8, num_heads=2, head_dim=8, mlp_dim=32))
"""


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """Where the data is built by the first run that asks for it."""
    return tmp_path_factory.mktemp("data") / "first_light"


@pytest.fixture(scope="session")
def config_file(tmp_path_factory, data_folder):
    """The config as a file."""
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(textwrap.dedent(CONFIG.format(data=str(data_folder))))
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory, config_file):
    """The run directory of a finished run."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["train", f"--config={config_file}", f"--workdir={workdir}"]) == 0
    return workdir
