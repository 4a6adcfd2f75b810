"""Folders that transformers writes, read by us, written by us and read by transformers again: same bits, same config.

And the other way round: models that we make, in folders whose config we write, give transformers the same outputs.
"""

import importlib.util
import json

import jax
import numpy as np
import pytest

from mmjax.checkpoint.convert.adapter import read_adapter, save_adapter
from mmjax.checkpoint.convert.pretrained import Pretrained, differences, from_pretrained, save_pretrained
from mmjax.checkpoint.paths import flatten, nest
from mmjax.cli.compare import _batch, _normalized, _pixels, _tokens, compare
from mmjax.cli.main import main
from mmjax.layers.low_rank import LowRank, is_adapter
from mmjax.models import LanguageConfig, build
from mmjax.models.clip import Clip
from mmjax.parallel import make_mesh
from mmjax.parts.vision_tower import vision_tower

if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
    pytest.skip("needs torch and transformers; see tests/parity/requirements.txt", allow_module_level=True)

import references as ref  # noqa: E402
import safetensors.torch  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from open_clip.model import CLIP  # noqa: E402

hf = ref.transformers
WIDE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
TEXT = dict(vocab_size=40, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3,
            max_position_embeddings=12)
IMAGE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=24,
             patch_size=8)
MODELS = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=40, num_key_value_heads=2, **WIDE)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(vocab_size=40, num_key_value_heads=2, sliding_window=None,
                                                              **WIDE)),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(vocab_size=40, num_key_value_heads=2,
                                                              num_local_experts=4, **WIDE)),
    "opt": lambda: hf.OPTForCausalLM(hf.OPTConfig(vocab_size=40, hidden_size=32, ffn_dim=48, num_hidden_layers=2,
                                                  num_attention_heads=4, word_embed_proj_dim=32,
                                                  max_position_embeddings=16)),
    "gpt_neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(vocab_size=40, **WIDE)),
    "mpt": lambda: hf.MptForCausalLM(hf.MptConfig(vocab_size=40, d_model=32, n_heads=4, n_layers=2, max_seq_len=32)),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2,
                                                            num_heads=4, feed_forward_proj="gated-gelu")),
    "bert": lambda: hf.BertModel(hf.BertConfig(vocab_size=40, max_position_embeddings=16, **WIDE)),
    "clip": lambda: hf.CLIPModel(hf.CLIPConfig(text_config=TEXT | dict(eos_token_id=39, projection_dim=20),
                                               vision_config=IMAGE | dict(projection_dim=20), projection_dim=20)),
    "clip_vision_model": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**IMAGE)),
    "aimv2_vision_model": lambda: hf.Aimv2VisionModel(hf.Aimv2VisionConfig(use_head=False, **IMAGE)),
    "siglip": lambda: hf.SiglipModel(hf.SiglipConfig(text_config=TEXT | dict(projection_size=32), vision_config=IMAGE)),
}


@pytest.fixture(params=MODELS)
def theirs(request, tmp_path):
    """(kind, a random model of transformers, the folder it wrote)."""
    torch.manual_seed(0)
    module = MODELS[request.param]()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    module.save_pretrained(tmp_path / "theirs", max_shard_size="30KB")
    return request.param, module.eval(), tmp_path / "theirs"


def test_folders_come_back_bit_for_bit(theirs, tmp_path):
    kind, module, folder = theirs
    assert len(list(folder.glob("*.safetensors"))) > 1
    model = from_pretrained(folder, mesh=make_mesh({"fsdp": 2, "model": 1}, jax.devices()[:2]))
    assert model.kind == kind
    assert sum(x.size for x in jax.tree.leaves(model.params)) == sum(p.numel() for p in module.parameters())
    save_pretrained(tmp_path / "ours", model, max_shard_bytes=20_000)
    again = type(module).from_pretrained(tmp_path / "ours")
    before, after = module.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    read = lambda path: json.loads((path / "config.json").read_text())  # noqa: E731
    assert read(tmp_path / "ours") == read(folder)


def test_a_config_that_we_write_says_the_same(theirs, tmp_path):
    """Without the published config: ours, written anew, must make transformers compute the same."""
    kind, module, folder = theirs
    model = from_pretrained(folder)
    save_pretrained(tmp_path / "ours", Pretrained(kind, model.config, model.params, {}))
    again = from_pretrained(tmp_path / "ours")
    assert not differences(again.config, model.config)
    for path, array in flatten(again.params).items():
        np.testing.assert_array_equal(array, flatten(model.params)[path])
    other = type(module).from_pretrained(tmp_path / "ours").eval()
    for name, x in run(module).items():
        assert torch.equal(x, run(other)[name]), name


def run(module) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 39, (2, 9), generator=g)
    tokens[:, -1] = 39
    pixels = torch.randn(2, 3, 24, 24, generator=g)
    inputs = dict(input_ids=tokens)
    if isinstance(module, hf.CLIPVisionModel | hf.Aimv2VisionModel):
        inputs = dict(pixel_values=pixels)
    elif isinstance(module, hf.CLIPModel | hf.SiglipModel):
        inputs["pixel_values"] = pixels
    elif isinstance(module, hf.T5ForConditionalGeneration):
        inputs["decoder_input_ids"] = tokens
    with torch.no_grad():
        out = module(**inputs)
    names = ("logits", "last_hidden_state", "pooler_output", "logits_per_image")
    return {name: out[name] for name in names if name in out}


def test_the_command_finds_no_difference_and_finds_one(theirs, tmp_path, capsys):
    kind, _, folder = theirs
    assert main(["convert", f"--folder={folder}", "--compare", "--tolerance=1e-4"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{kind}: ") and "largest difference" in said and ", mean " in said
    model = from_pretrained(folder)
    wrong = jax.tree_util.tree_map_with_path(
        lambda path, x: x + 0.5 if ("mlp" in str(path) or "moe" in str(path)) and x.ndim > 2 else x, model.params)
    save_pretrained(tmp_path / "wrong", model._replace(params=wrong), source=folder)
    assert compare(model, tmp_path / "wrong") > 1e-3


def test_peft_loads_the_adapters_that_a_run_trained(tmp_path):
    """Adapters beside LLaMA's kernels, with a connector in the same file, against PEFT on the published weights."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = MODELS["llama"]()
    base.save_pretrained(tmp_path / "base")
    model = from_pretrained(tmp_path / "base")
    system = build("language", LanguageConfig(model.config), lambda path: LowRank(3, 12.0) if "/k/" not in path and (
        "attention" in path or "mlp/" in path) and path.endswith("kernel") else None)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(system.init, jax.random.key(0))
    flat = {path: rng.normal(size=x.shape).astype(np.float32)
            for path, x in flatten(shapes).items() if is_adapter(path)}
    params = nest({f"lm/{path}": x for path, x in flatten(model.params).items()} | flat)
    connector = {"connector/proj/kernel": np.ones((2, 3), np.float32)}
    save_adapter(tmp_path / "adapter", nest(flat | connector), system.choose, "llama", model.config)
    tokens = np.random.default_rng(1).integers(0, 40, (2, 9))
    ours = system.logits(params, _batch(tokens))
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        want = theirs(input_ids=torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(ours, want, atol=2e-5 * np.abs(want).max())
    again = read_adapter(tmp_path / "adapter", shapes | nest(connector), system.config)
    assert again.keys() == flat.keys() | connector.keys()
    for path, x in (flat | connector).items():
        np.testing.assert_array_equal(again[path], x)


@pytest.mark.parametrize("quick", [True, False])
def test_folders_of_open_clip(tmp_path, quick):
    """open_clip's own layout: its config file, its names; same outputs, and back bit for bit."""
    torch.manual_seed(0)
    config = dict(embed_dim=20, quick_gelu=quick,
                  vision_cfg=dict(image_size=24, patch_size=8, width=32, layers=2, head_width=16, mlp_ratio=3.0),
                  text_cfg=dict(context_length=12, vocab_size=40, width=24, heads=3, layers=2))
    module = CLIP(**config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
        module.logit_scale.fill_(1.5)
    (tmp_path / "theirs").mkdir()
    published = dict(model_cfg=config, preprocess_cfg=dict(mean=[0.5] * 3, std=[0.5] * 3))
    (tmp_path / "theirs" / "open_clip_config.json").write_text(json.dumps(published))
    tensors = {name: x.contiguous() for name, x in module.state_dict().items() if name != "attn_mask"}
    safetensors.torch.save_file(tensors, tmp_path / "theirs" / "open_clip_model.safetensors")
    model = from_pretrained(tmp_path / "theirs")
    c = model.config.vision
    tokens, pixels = _tokens(40, 39, 12), _pixels(24)
    clip = Clip(model.config)
    images, texts = clip.image_features(model.params, pixels), clip.text_features(model.params, _batch(tokens))
    with torch.no_grad():
        x = torch.from_numpy(_normalized(pixels, c))
        want = [f(y, normalize=True).numpy() for f, y in ((module.encode_image, x),
                                                          (module.encode_text, torch.from_numpy(tokens)))]
    for got, expected in zip((images, texts), want, strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())
    save_pretrained(tmp_path / "ours", model)
    again = safetensors.torch.load_file(tmp_path / "ours" / "open_clip_model.safetensors")
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], x) for name, x in tensors.items())
    save_pretrained(tmp_path / "anew", model._replace(published={}))
    assert not differences(from_pretrained(tmp_path / "anew").config, model.config)


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "dm_nfnet_f0"])
def test_towers_of_timm(tmp_path, name):
    """A folder as timm publishes it; its head is left out."""
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=0).eval()
    (tmp_path / "config.json").write_text(json.dumps(dict(architecture=f"{name}.some_tag", num_classes=0)))
    safetensors.torch.save_file(module.state_dict(), tmp_path / "model.safetensors")
    model = from_pretrained(tmp_path)
    pixels = _pixels(model.config.image_size)[:1]
    ours = jax.jit(vision_tower(model.config).apply)({"params": model.params}, pixels)
    with torch.no_grad():
        want = module.forward_features(torch.from_numpy(_normalized(pixels, model.config)))
        want = want.flatten(2).transpose(1, 2) if want.ndim == 4 else want
    np.testing.assert_allclose(ours, want.numpy(), atol=1e-4 * float(want.abs().max()))
