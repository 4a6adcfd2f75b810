"""PyTorch in the benchmarks of train step and decoding: a straightforward module, eager or compiled."""

import numpy as np
import torch
import train_step_inputs as inputs
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """A pre-norm block; queries, keys and values from one product."""

    def __init__(self):
        super().__init__()
        d = inputs.WIDTH
        self.attention_norm, self.mlp_norm = nn.RMSNorm(d, inputs.EPS), nn.RMSNorm(d, inputs.EPS)
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.up, self.down = nn.Linear(d, inputs.MLP, bias=False), nn.Linear(inputs.MLP, d, bias=False)

    def forward(self, x, cos, sin, attend):
        q, k, v = (y.unflatten(-1, (inputs.HEADS, -1)).transpose(1, 2)
                   for y in self.qkv(self.attention_norm(x)).chunk(3, -1))
        heads = attend(rotate(q, cos, sin), rotate(k, cos, sin), v)
        x = x + self.out(heads.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class Decoder(nn.Module):
    """Tokens to logits."""

    def __init__(self, max_positions: int):
        super().__init__()
        self.embed = nn.Embedding(inputs.VOCAB, inputs.WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(inputs.LAYERS))
        self.final_norm = nn.RMSNorm(inputs.WIDTH, inputs.EPS)
        half = inputs.WIDTH // inputs.HEADS // 2
        angles = np.arange(max_positions)[:, None] * inputs.ROTARY_BASE ** (-np.arange(half) / half)
        self.register_buffer("cos", torch.tensor(np.cos(angles), dtype=torch.float32))
        self.register_buffer("sin", torch.tensor(np.sin(angles), dtype=torch.float32))
        self._load(inputs.parameters())

    def forward(self, tokens):
        x, t = self.embed(tokens), tokens.shape[1]
        for block in self.blocks:
            x = block(x, self.cos[:t], self.sin[:t], _causal)
        return F.linear(self.final_norm(x), self.embed.weight)

    @torch.no_grad()
    def _load(self, arrays: dict[str, np.ndarray]) -> None:
        def matrix(path, layer, size_in):
            return torch.tensor(arrays[f"blocks/{path}"][layer].reshape(size_in, -1).T)

        self.embed.weight.copy_(torch.tensor(arrays["token_embed/table"]))
        d = inputs.WIDTH
        for i, block in enumerate(self.blocks):
            block.qkv.weight.copy_(torch.cat([matrix(f"attention/{name}/kernel", i, d) for name in "qkv"]))
            block.out.weight.copy_(matrix("attention/out/kernel", i, d))
            block.up.weight.copy_(matrix("mlp/up/kernel", i, d))
            block.down.weight.copy_(matrix("mlp/down/kernel", i, inputs.MLP))


def _causal(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def make(rows: int, length: int, threads: int, compiled: bool):
    """One update by its loss, with the fused AdamW."""
    torch.set_num_threads(threads)
    model, a = Decoder(length), inputs.ADAMW
    text = torch.tensor(inputs.tokens(rows, length + 1), dtype=torch.long)
    tokens, targets = text[:, :-1].contiguous(), text[:, 1:].reshape(-1)
    optimizer = torch.optim.AdamW(model.parameters(), a["lr"], (a["b1"], a["b2"]), a["eps"], a["weight_decay"],
                                  fused=True)

    def loss_of(tokens, targets):
        return F.cross_entropy(model(tokens).flatten(0, 1), targets)

    loss_of = torch.compile(loss_of) if compiled else loss_of

    def run() -> list[float]:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(tokens, targets)
        loss.backward()
        optimizer.step()
        return [loss.item()]

    return run


def versions() -> dict[str, str]:
    return dict(torch=torch.__version__)
