"""The table engine: numbers where they belong, bits that come back, and gaps that are named."""

from types import SimpleNamespace

import numpy as np
import pytest

from mmjax.checkpoint.convert import forms
from mmjax.checkpoint.convert.table import Entry, Table, dense, norm, to_ours, to_theirs, under

D, N, K, H, F, E, LAYERS = 6, 4, 2, 3, 5, 2, 3
LAYER = (
    *norm("norm", "ln"),
    Entry(("q/kernel", "k/kernel", "v/kernel"), "attn.qkv.weight", forms.fused(forms.linear())),
    Entry(("q/bias", "k/bias", "v/bias"), "attn.qkv.bias", forms.fused(forms.flat)),
    *dense("out", "attn.out", inputs=2),
    *under("experts/", "moe.experts.{expert}.", dense("up", "w1", use_bias=False), expert=range(E)),
)
TABLE = Table((Entry("embed", "wte.weight"), Entry("patch", "conv.weight", forms.conv(2)),
               Entry("position", "wpe", forms.batched),
               *under("blocks/", "h.{layer}.", LAYER, layer=range(1, LAYERS + 1))), ignored=(r"h\.\d+\.inv_freq",))
SHAPES = {
    "embed": (7, D), "patch": (12, D), "position": (4, D),
    "blocks": {"norm": {"scale": (LAYERS, D), "bias": (LAYERS, D)},
               "q": {"kernel": (LAYERS, D, N, H), "bias": (LAYERS, N, H)},
               "k": {"kernel": (LAYERS, D, K, H), "bias": (LAYERS, K, H)},
               "v": {"kernel": (LAYERS, D, K, H), "bias": (LAYERS, K, H)},
               "out": {"kernel": (LAYERS, N, H, D), "bias": (LAYERS, D)},
               "experts": {"up": {"kernel": (LAYERS, E, D, F)}}},
}


def shaped(tree):
    return {k: shaped(v) if isinstance(v, dict) else SimpleNamespace(shape=v) for k, v in tree.items()}


def tensors(dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = {"wte.weight": (7, D), "conv.weight": (D, 3, 2, 2), "wpe": (1, 4, D)}
    for i in range(1, LAYERS + 1):
        shapes |= {f"h.{i}.ln.weight": (D,), f"h.{i}.ln.bias": (D,), f"h.{i}.attn.qkv.weight": ((N + 2 * K) * H, D),
                   f"h.{i}.attn.qkv.bias": ((N + 2 * K) * H,), f"h.{i}.attn.out.weight": (D, N * H),
                   f"h.{i}.attn.out.bias": (D,), **{f"h.{i}.moe.experts.{e}.w1.weight": (F, D) for e in range(E)}}
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


@pytest.mark.quick
def test_numbers_stand_where_a_loop_puts_them():
    theirs = tensors()
    ours = to_ours(TABLE, theirs, shaped(SHAPES))
    x, image = np.random.default_rng(1).normal(size=D), np.random.default_rng(2).normal(size=(3, 2, 2))
    qkv = theirs["h.2.attn.qkv.weight"] @ x + theirs["h.2.attn.qkv.bias"]
    block = ours["blocks"]
    for name, want in zip("qkv", np.split(qkv, [N * H, (N + K) * H]), strict=True):
        got = np.einsum("d,dnh->nh", x, block[name]["kernel"][1]) + block[name]["bias"][1]
        np.testing.assert_allclose(got.reshape(-1), want, rtol=1e-6)
    heads = np.arange(N * H, dtype=float)
    np.testing.assert_allclose(np.einsum("nh,nhd->d", heads.reshape(N, H), block["out"]["kernel"][2]),
                               theirs["h.3.attn.out.weight"] @ heads, rtol=1e-6)
    np.testing.assert_array_equal(block["experts"]["up"]["kernel"][0, 1], theirs["h.1.moe.experts.1.w1.weight"].T)
    np.testing.assert_allclose(image.transpose(1, 2, 0).reshape(-1) @ ours["patch"],
                               np.einsum("cij,dcij->d", image, theirs["conv.weight"]), rtol=1e-5)


@pytest.mark.quick
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_round_trip_is_bit_equal(dtype):
    theirs = tensors(dtype)
    back = to_theirs(TABLE, to_ours(TABLE, theirs, shaped(SHAPES)))
    assert back.keys() == theirs.keys()
    for name, want in theirs.items():
        assert back[name].dtype == dtype
        np.testing.assert_array_equal(back[name], want, err_msg=name)


@pytest.mark.quick
def test_interleaved_heads():
    w = np.arange(2 * 3 * 2 * 5).reshape(12, 5)                # 2 heads of q, k, v of size 2; D = 5
    form = forms.interleaved(forms.linear(), num_heads=2)
    q, k, v = form.load(w, [(5, 2, 2)] * 3)
    np.testing.assert_array_equal(k[:, 1, 0], w[6 + 2])        # head 1 starts at row 6, its key at row 8
    np.testing.assert_array_equal(v[:, 0, 1], w[5])
    np.testing.assert_array_equal(form.store([q, k, v]), w)


def test_what_is_missing_left_over_or_misshapen_is_named():
    theirs = tensors()
    del theirs["h.2.ln.bias"]
    theirs["h.2.ln.bais"] = np.zeros(D)
    with pytest.raises(ValueError, match=r"missing tensors: 'h.2.ln.bias' \(near 'h.2.ln.bais'\); .*left over"):
        to_ours(TABLE, theirs, shaped(SHAPES))
    theirs = tensors() | {"h.1.attn.out.weight": np.zeros((N * H, D))}
    with pytest.raises(ValueError, match=r"'h.1.attn.out.weight' has shape \[12, 6\], but blocks/out/kernel "
                                         r"\[3, 4, 3, 6\] needs \[6, 12\]"):
        to_ours(TABLE, theirs, shaped(SHAPES))
    assert to_ours(TABLE, tensors() | {"h.1.inv_freq": np.ones(2)}, shaped(SHAPES)).keys() == SHAPES.keys()


def test_a_table_with_a_gap_or_of_another_depth_is_refused():
    gap = Table(tuple(e for e in TABLE.entries if e.theirs != "wpe"))
    with pytest.raises(ValueError, match="no entry for parameter: 'position'"):
        to_theirs(gap, to_ours(TABLE, tensors(), shaped(SHAPES)))
    with pytest.raises(ValueError, match="filled twice: 'embed'"):
        to_ours(Table((*TABLE.entries, Entry("embed", "again"))), tensors(), shaped(SHAPES))
    deeper = Table((*TABLE.entries[:3], *under("blocks/", "h.{layer}.", LAYER, layer=range(4))))
    with pytest.raises(ValueError, match=r"blocks/norm/scale has shape \[3, 6\], but the table has \[4\] of 'h"):
        to_ours(deeper, tensors(), shaped(SHAPES))
