"""Every mistake in a config gives one error that names the field, the value and the rule."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import ml_collections
import pytest

from mmjax.training import config as config_lib
from mmjax.training import structure
from mmjax.training.structure import ConfigError

pytestmark = pytest.mark.quick


@dataclasses.dataclass(frozen=True)
class Block:
    embed_dim: int = 4
    kind: Literal["pre", "post"] = "pre"
    scale: float | None = None

    def __post_init__(self):
        if self.embed_dim % 2:
            raise ValueError(f"embed_dim={self.embed_dim} must be even")


@dataclasses.dataclass(frozen=True)
class Toy:
    block: Block = Block()
    blocks: tuple[Block, ...] = ()
    pair: tuple[int, str] = (1, "a")
    named: Mapping[str, Block] = dataclasses.field(default_factory=dict)
    bias: bool = True


@dataclasses.dataclass(frozen=True)
class Data:
    folder: str
    workers: int = structure.free(default=0)


@dataclasses.dataclass(frozen=True)
class Eval:
    shots: tuple[int, ...] = (0,)


TYPES = dict(model_types={"toy": Toy, "flamingo": Toy}, data_type=Data, eval_type=Eval)


def flat(**changes):
    values = dict(system="toy", model={}, data={"folder": "x"}, total_steps=5)
    return values | changes


def only(values) -> config_lib.StageConfig:
    (name, stage), = config_lib.resolve(values, **TYPES)
    assert name == ""
    return stage


def test_flat_config_dict_becomes_nested_dataclasses():
    c = ml_collections.ConfigDict(flat())
    c.model = dict(block=dict(embed_dim=8, scale=2), blocks=(dict(kind="post"),), named=dict(a=dict(embed_dim=6)))
    c.optimizer = ml_collections.ConfigDict(dict(lr=1, clip_norm=None))
    c.rules = (("lm/.*", "frozen"), (".*", "main"))
    c.evals = (dict(shots=(0, 4)),)
    stage = only(c)
    assert stage.model == Toy(Block(8, scale=2.0), (Block(kind="post"),), named={"a": Block(6)})
    assert type(stage.model.block.scale) is float and type(stage.optimizer.lr) is float
    assert stage.optimizer.clip_norm is None and stage.evals == (Eval((0, 4)),)
    assert stage.rules == (("lm/.*", "frozen"), (".*", "main"))


def test_json_round_trip_is_complete_and_stable():
    stage = only(flat(model={"named": {"b": {}, "a": {"scale": 1e-3}}}, evals=[{"shots": [2]}]))
    text = config_lib.to_json(stage)
    again = config_lib.resolve_stage(json.loads(text), "", *TYPES.values())
    assert again == stage and config_lib.to_json(again) == text
    assert json.loads(text)["optimizer"]["b2"] == 0.999


def test_stages_in_order_with_their_names():
    c = dict(stages=("first", "second"), first=flat(), second=flat(init_from={"lm": "first", "vision": "runs/clip"}))
    assert [name for name, _ in config_lib.resolve(c, **TYPES)] == ["first", "second"]


@pytest.mark.parametrize("changes, message", [
    (dict(model={"block": {"embed_dmi": 4}}), r"unknown field 'model.block.embed_dmi'.*did you mean 'embed_dim'"),
    (dict(totl_steps=3), r"unknown field 'totl_steps' of StageConfig.*did you mean 'total_steps'"),
    (dict(model={"named": {"a": {"x": 1}}}), r"unknown field 'model.named.a.x'.*known: embed_dim, kind, scale"),
    (dict(data={}), r"missing field 'data.folder': Data has no default"),
    (dict(total_steps=1e3), r"total_steps=1000.0 is of type float but must be of type int"),
    (dict(total_steps=True), r"total_steps=True is of type bool but must be of type int"),
    (dict(model={"bias": 1}), r"model.bias=1 is of type int but must be of type bool"),
    (dict(model={"block": {"scale": "x"}}), r"model.block.scale='x' is of type str but must be of type float"),
    (dict(model={"block": None}), r"model.block=None must be a mapping with the fields of Block"),
    (dict(model={"blocks": [{}, {"kind": "pots"}]}), r"model.blocks.1.kind='pots'.*pre; did you mean 'post'"),
    (dict(model={"pair": (1,)}), r"model.pair=\(1,\) must have 2 items, not 1"),
    (dict(model={"blocks": 3}), r"model.blocks=3 is of type int but must be a tuple or list"),
    (dict(model={"block": {"embed_dim": 3}}), r"model.block: embed_dim=3 must be even"),
    (dict(evals=({"shot": 1},)), r"unknown field 'evals.0.shot'.*did you mean 'shots'"),
    (dict(system="flamngo"), r"system='flamngo' is not a system; known: flamingo, toy; did you mean 'flamingo'"),
    (dict(optimizer={"lr": 0.0}), r"optimizer.*lr=0.0 must be positive"),
    (dict(optimizer={"lr": 1e-3, "end_lr": 1.0}), r"end_lr=1.0 must lie between 0 and lr=0.001"),
    (dict(optimizer={"clip_norm": 0.0}), r"clip_norm=0.0 must be positive, or None"),
    (dict(optimizer={"name": "adam"}), r"optimizer.name='adam' is not a choice; known: adamw, lion"),
    (dict(optimizer={"schedule": "cosine", "warmup_steps": 5}), r"warmup_steps=5 must be less than total_steps=5"),
    (dict(rules=((".*", "mian"),)), r"rule \('.\*', 'mian'\) names an unknown group;.*did you mean 'main'"),
    (dict(rules=(("(", "main"),)), r"rule \('\(', 'main'\) is not a regular expression"),
    (dict(groups={"frozen": {}}), r"groups.frozen is built in"),
    (dict(groups={"main": {"lr_mult": 0.0}}), r"groups.main: lr_mult=0.0 must be positive"),
    (dict(mesh={"fdsp": 2}), r"unknown mesh axis 'fdsp'.*did you mean 'fsdp'"),
    (dict(log_every=0), r"log_every=0 must be positive"),
    (dict(checkpoint_every=-1), r"checkpoint_every=-1 must not be negative"),
    (dict(frozen_dtype="float16"), r"frozen_dtype='float16' is not a choice"),
    (dict(stages=("a",)), r"unknown field 'system' beside 'stages'"),
    (dict(stages="ab"), r"stages='ab' must be a tuple of different names"),
])
def test_each_mistake_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.resolve(flat(**changes), **TYPES)


@pytest.mark.parametrize("stages, message", [
    (dict(stages=("a", "b"), a=flat()), r"stages names 'b', but the config has no field 'b'"),
    (dict(stages=("a",), a=flat(modl={})), r"unknown field 'a.modl'"),
    (dict(stages=("aa", "b"), aa=flat(), b=flat(init_from={"lm": "aaa"})),
     r"b.init_from.lm='aaa' is neither.*known: aa; did you mean 'aa'"),
    (dict(stages=("a",), a=flat(init_from={"lm": "a"})), r"a.init_from.lm='a' is neither"),
])
def test_each_mistake_between_stages_is_named(stages, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.resolve(stages, **TYPES)


def test_a_run_continues_only_under_its_own_config():
    stored = json.loads(config_lib.to_json(only(flat())))
    free = only(flat(total_steps=9, log_every=1, mesh={"fsdp": 2}, data={"folder": "x", "workers": 2}))
    config_lib.check_same_run(free, stored, Path("/run"))
    changed = only(flat(seed=7, model={"block": {"embed_dim": 8}}, groups={"other": {}}, rules=((".*", "other"),)))
    with pytest.raises(ConfigError) as error:
        config_lib.check_same_run(changed, stored, Path("/run"))
    lines = str(error.value).splitlines()
    assert "/run holds a run of another config" in lines[0]
    assert ["model.block.embed_dim", "4", "8"] in [line.split() for line in lines]
    fields = ("lora_alpha", "lora_rank", "lr_mult", "max_value", "weight_decay")
    assert [line.split()[0] for line in lines[2:]] == [
        *(f"groups.{group}.{field}" for group in ("main", "other") for field in fields),
        "model.block.embed_dim", "rules.0.1", "seed"]


def test_a_field_that_disappeared_or_is_new_counts_as_a_change():
    stored = json.loads(config_lib.to_json(only(flat())))
    stored["optimizer"]["nesterov"] = True
    del stored["optimizer"]["b2"]
    assert structure.difference(only(flat()), stored) == [
        ("optimizer.b2", "absent", 0.999), ("optimizer.nesterov", True, "absent")]
