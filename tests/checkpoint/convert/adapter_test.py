"""Folders of what a run trained; `tests/parity/pretrained_test.py` gives them to PEFT."""

import json

import numpy as np
import pytest
import tiny_systems
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from mmjax.checkpoint.convert.adapter import CONFIG, FILE, read_adapter, save_adapter
from mmjax.checkpoint.convert.weights import WeightFolder, WeightsError
from mmjax.checkpoint.paths import flatten, nest
from mmjax.layers.low_rank import LowRank, is_adapter
from mmjax.models import build


def choose(path):
    return LowRank(2, 8.0) if path.startswith("lm/blocks") and path.endswith("kernel") else None


def trained(system="flamingo"):
    """What a Flamingo with adapters trains: these and all that is no language model."""
    model = build(system, tiny_systems.config(system), choose)
    flat = flatten(tiny_systems.random_params(model))
    return {path: np.asarray(x) for path, x in flat.items() if is_adapter(path) or not path.startswith("lm/")}


@pytest.mark.quick
@pytest.mark.parametrize("kind", ["", "llama"])
def test_one_file_has_adapters_and_connectors(tmp_path, kind):
    params, config = trained(), tiny_systems.config("flamingo").lm if kind else None
    save_adapter(tmp_path / "a", nest(params), choose, kind, config)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [CONFIG, FILE]
    about = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert (about["r"], about["lora_alpha"]) == (2, 8.0)
    assert about["target_modules"] == (["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
                                       if kind else [])
    again = read_adapter(tmp_path / "a", nest(params), tiny_systems.config("flamingo"))
    assert again.keys() == params.keys()
    for path, x in params.items():
        np.testing.assert_array_equal(again[path], x)


@pytest.mark.quick
def test_faults_are_named(tmp_path):
    params = trained()
    save_adapter(tmp_path / "a", nest(params), choose)
    with pytest.raises(WeightsError, match="exists and is not an empty folder"):
        save_adapter(tmp_path / "a", nest(params), choose)
    fewer = {path: x for path, x in params.items() if not path.startswith("xattn")}
    with pytest.raises(WeightsError, match="'mmjax.xattn/.*', which is no parameter of this model"):
        read_adapter(tmp_path / "a", nest(fewer))
    with pytest.raises(WeightsError, match="the adapters differ: .*; a folder has one rank and one alpha"):
        save_adapter(tmp_path / "b", nest(params), lambda path: LowRank(2, 8.0 if "/q/" in path else 4.0))
    with pytest.raises(WeightsError, match="only adapter_model.safetensors|has neither"):
        WeightFolder(tmp_path / "a")


@pytest.mark.quick
def test_another_alpha_and_missing_layers_are_refused(tmp_path):
    params, config = trained(), tiny_systems.config("flamingo")
    save_adapter(tmp_path / "a", nest(params), choose, "llama", config.lm)
    assert read_adapter(tmp_path / "a", nest(params), config, choose)
    other = lambda path: LowRank(2, 64.0) if choose(path) else None  # noqa: E731
    with pytest.raises(WeightsError, match="has r=2, lora_alpha=8.0, but the rules give .* rank=2, alpha=64.0"):
        read_adapter(tmp_path / "a", nest(params), config, other)
    tensors = {name: x for name, x in load_file(tmp_path / "a" / FILE).items() if "layers.1." not in name}
    with safe_open(tmp_path / "a" / FILE, framework="np") as file:
        save_file(tensors, tmp_path / "a" / FILE, metadata=file.metadata())
    with pytest.raises(WeightsError, match="has only a part of the layers of 'lm/blocks"):
        read_adapter(tmp_path / "a", nest(params), config, choose)
