"""PyTorch in the benchmark of decoding: a cache of fixed size, one step compiled or eager, a loop in Python."""

import torch
import train_step_inputs as inputs
from torch.nn import functional as F
from train_step_torch import Decoder, versions  # noqa: F401


class Cached(Decoder):
    """Writes keys and values of new tokens into a cache and attends to what is there."""

    def __init__(self, rows: int, room: int):
        super().__init__(room)
        shape = inputs.LAYERS, rows, inputs.HEADS, room, inputs.WIDTH // inputs.HEADS
        self.register_buffer("keys", torch.zeros(shape))
        self.register_buffer("values", torch.zeros(shape))
        self.register_buffer("places", torch.arange(room))

    def forward(self, tokens, positions):
        """int64[B, T'] at positions int64[T'] -> int64[B, 1] the likeliest next token."""
        mask = self.places[None] <= positions[:, None]
        x = self.embed(tokens)
        for i, block in enumerate(self.blocks):
            def attend(q, k, v, keys=self.keys[i], values=self.values[i]):
                keys.index_copy_(2, positions, k)
                values.index_copy_(2, positions, v)
                return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)

            x = block(x, self.cos[positions], self.sin[positions], attend)
        return F.linear(self.final_norm(x[:, -1]), self.embed.weight).argmax(-1, keepdim=True)


def make(rows: int, length: int, new_tokens: int, threads: int, compiled: bool):
    """Greedy tokens after the prompts, the prompts' own reading included."""
    torch.set_num_threads(threads)
    model = Cached(rows, length + new_tokens).eval()
    prompts = torch.tensor(inputs.tokens(rows, length + 1)[:, :-1], dtype=torch.long)
    step = torch.compile(model, dynamic=False) if compiled else model
    positions = torch.arange(length + new_tokens)

    @torch.inference_mode()
    def run() -> list[float]:
        found = [step(prompts, positions[:length])]
        for i in range(length, length + new_tokens - 1):
            found.append(step(found[-1], positions[i:i + 1]))
        return torch.cat(found, 1).reshape(-1).tolist()

    return run
