"""The contestants of the attention benchmark that are written in PyTorch; nothing of it is needed to run the others."""

import functools
import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from attention_jax import Ready, Refused
from torch.nn.functional import scaled_dot_product_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Peer(NamedTuple):
    """Attributes:
    name, library: as reported.
    attend: q, k, v in the layout of the peer -> out; made for a row by `make(row, start, stop)`.
    heads_first: the layout is [B, N, T, H] rather than [B, T, N, H].
    """

    name: str
    library: str
    make: Callable[..., Callable]
    heads_first: bool = True

    def prepare(self, row, arrays, dtype: str, backward: bool, limit: int) -> Ready:
        dtype = getattr(torch, dtype)
        turn_q, turn_k = (_turner(row, side) for side in (1, -1))
        start, stop = (torch.tensor(np.asarray(bound), device=DEVICE) for bound in row.mask())
        tensors = [torch.tensor(x, device=DEVICE).to(dtype) for x in arrays]
        if self.heads_first:
            tensors = [x.transpose(1, 2).contiguous() for x in tensors]
        *inputs, d_out = tensors
        attend = self.make(row, start, stop)

        def call():
            with torch.set_grad_enabled(backward):
                q, k, v = inputs
                out = attend(turn_q(q, self.heads_first), turn_k(k, self.heads_first), v)
            return [out, *torch.autograd.grad(out, inputs, d_out)] if backward else [out]

        for x in inputs:
            x.requires_grad_(backward)
        return Ready(call, _wait, self._arrays, _measure_memory(call))

    def _arrays(self, result):
        return [_Numpy(x.transpose(1, 2) if self.heads_first else x) for x in result]


class _Numpy(NamedTuple):
    """What `attention_jax.visible_part` asks of an array."""

    tensor: torch.Tensor

    def __getitem__(self, at):
        first, every, heads = at
        part = self.tensor[first, every][:, :, torch.as_tensor(heads, device=self.tensor.device)]
        return part.detach().float().cpu().numpy()


def peers() -> list[Peer]:
    """Every one that is installed."""
    if DEVICE == "cpu":
        found = [Peer("sdpa", "torch sdpa", functools.partial(_sdpa, None))]
    else:
        from torch.nn.attention import SDPBackend
        backends = SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION
        names = [b.name.split("_")[0].lower() for b in backends]
        found = [Peer(f"sdpa {name}", "torch sdpa", functools.partial(_sdpa, b))
                 for name, b in zip(names, backends, strict=True)]
    found += [Peer("flex attention", "torch flex", _flex)]
    for module in ("flash_attn_interface", "flash_attn", "flash_attn.cute"):  # versions 3, 2 and 4
        if _is_installed(module):
            found += [Peer(module, "flash attention", functools.partial(_flash, module), heads_first=False)]
    return found


def versions() -> dict[str, str]:
    return dict(torch=torch.__version__, cuda=str(torch.version.cuda))


def matmul(size: int, dtype: str) -> Callable[[], object]:
    """A product of two square matrices, for the measured peak."""
    a, b = (torch.randn(size, size, device=DEVICE).to(getattr(torch, dtype)) for _ in range(2))
    return lambda: _wait(a @ b)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _wait(result):
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return result


def _measure_memory(call) -> int | None:
    """Peak of device memory in a call beyond what was there before; PyTorch does not count it on a CPU."""
    if DEVICE == "cpu":
        return None
    _wait(call())
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = _wait(call())
    return torch.cuda.max_memory_allocated() - before - sum(x.numel() * x.element_size() for x in result)


def _turner(row, side: int) -> Callable:
    """x, heads_first -> x turned by its positions and, for xPos, scaled by the power `side` (1 queries, -1 keys)."""
    if row.rotary is None:
        return lambda x, heads_first: x
    pair = np.arange(row.head_dim // 2)
    positions = row.positions()[..., None].astype(np.float64)
    angle = positions * 10_000.0 ** (-2 * pair / row.head_dim)
    scale = 1.0
    if row.rotary == "xpos":
        scale = ((2 * pair + 0.4 * row.head_dim) / (1.4 * row.head_dim)) ** (side * positions / 512)
    cos, sin = (torch.tensor(f(angle) * scale, dtype=torch.float32, device=DEVICE) for f in (np.cos, np.sin))

    def turn(x, heads_first):
        c, s = (y.unsqueeze(1 if heads_first else 2) for y in (cos, sin))
        y = x.float()
        if row.rotary == "split":
            a, b = y.chunk(2, -1)
            return torch.cat([a * c - b * s, b * c + a * s], -1).to(x.dtype)
        a, b = y[..., 0::2], y[..., 1::2]
        return torch.stack([a * c - b * s, b * c + a * s], -1).flatten(-2).to(x.dtype)

    return turn


def _dense(row, start, stop):
    keys = torch.arange(row.num_keys, device=DEVICE)
    return ((start[..., None] <= keys) & (keys < stop[..., None]))[:, None]


def _sdpa(backend, row, start, stop):
    dense = None if row.kind in ("causal", "full") else _dense(row, start, stop)
    blind = (start >= stop)[:, None, :, None] if row.kind == "images" else None
    grouped = dict(enable_gqa=True) if row.num_heads != row.num_kv_heads else {}

    def attend(q, k, v):
        out = scaled_dot_product_attention(q, k, v, attn_mask=dense, is_causal=row.kind == "causal", **grouped)
        return out if blind is None else out.masked_fill(blind, 0)

    if backend is None:
        return attend
    from torch.nn.attention import sdpa_kernel

    def with_backend(q, k, v):
        with sdpa_kernel(backend):
            return attend(q, k, v)

    return with_backend


@functools.cache
def _compiled_flex():
    from torch.nn.attention.flex_attention import flex_attention
    return torch.compile(flex_attention, dynamic=False)


def _flex(row, start, stop):
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(b, h, query, key):
        return (start[b, query] <= key) & (key < stop[b, query])

    block_mask = create_block_mask(sees, row.batch, None, row.num_queries, row.num_keys, device=DEVICE)
    return functools.partial(_compiled_flex(), block_mask=block_mask, enable_gqa=row.num_heads != row.num_kv_heads)


def _flash(module, row, start, stop):
    flash = importlib.import_module(module)
    if row.kind in ("causal", "full"):
        run = functools.partial(flash.flash_attn_func, causal=row.kind == "causal")
        return lambda q, k, v: _first(run(q, k, v))
    if row.kind != "packed":
        raise Refused("it has causal, window and document masks only")
    lengths = [n for ids in row.segments() for n in np.bincount(ids)[1:]]
    ends = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32, device=DEVICE)

    def attend(q, k, v):
        flat = (x.flatten(0, 1) for x in (q, k, v))
        longest = int(max(lengths))
        out = flash.flash_attn_varlen_func(*flat, ends, ends, longest, longest, causal=True)
        return _first(out).unflatten(0, q.shape[:2])

    return attend


def _first(out):
    return out[0] if isinstance(out, tuple) else out
