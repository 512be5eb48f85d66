#!/usr/bin/env python3
"""The f-gram model over each f-gram by itself in PyTorch, a peer for `scone bench bake`: batches of f-grams padded to the
longest length, through a transformer of the same shape with random weights, fp32, inference mode, on the processor.

  OMP_NUM_THREADS=2 scone bench bake FGRAMS .. --peer "/usr/bin/python3 tests/peers/torch_bake.py"

  torch_bake.py --width W --layers N --heads H --length K --vocabulary V --count F-GRAMS [--batch B]

--batch 0, the default, takes the fastest of some sizes. Says on stderr what it runs on; the last line of stdout is f-grams a
second. A matrix product by Netlib's reference BLAS, which Debian's PyTorch has where no other is installed, is a hundred
times slower than the processor can: it is refused."""
import argparse
import sys
import time

from torch_environment import refuse_reference_blas, restart_at_its_best

if __name__ == "__main__":
    restart_at_its_best()

import torch
from torch import nn
from torch.nn import functional

BATCHES = (64, 256, 1024)


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.ffw_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attention_by_products(self, qkv):
        batch, length, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in qkv.split(width, dim=2))
        scores = q @ k.transpose(2, 3) * (width // self.heads) ** -0.5
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        attended = scores.masked_fill_(later, float("-inf")).softmax(-1) @ v
        return attended.transpose(1, 2).reshape(batch, length, width)

    def attention_by_position(self, qkv):
        batch, length, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        q, k, v = (part.view(batch, length, self.heads, -1) for part in qkv.split(width, dim=2))
        attended = torch.empty(batch, length, width)
        for i in range(length):
            scores = (q[:, i:i + 1] * k[:, :i + 1]).sum(-1, keepdim=True) * (width // self.heads) ** -0.5
            attended[:, i] = (scores.softmax(1) * v[:, :i + 1]).sum(1).view(batch, width)
        return attended

    def forward(self, x, attention):
        x = x + self.out(attention(self, self.qkv(self.attention_norm(x))))
        return x + self.down(functional.gelu(self.up(self.ffw_norm(x)), approximate="tanh"))


ATTENTIONS = {"products": Block.attention_by_products, "position": Block.attention_by_position}


class FgramModel(nn.Module):
    def __init__(self, width, layers, heads, length, vocabulary):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens, lengths, attention):
        """Rows [f-grams, width]: the output at each f-gram's last token."""
        x = self.tokens(tokens) + self.positions.weight
        for block in self.blocks:
            x = block(x, attention)
        return self.norm(x[torch.arange(len(lengths)), lengths - 1])


def rate(model, tokens, lengths, batch, attention):
    start = time.perf_counter()
    for begin in range(0, len(tokens), batch):
        model(tokens[begin:begin + batch], lengths[begin:begin + batch], attention)
    return len(tokens) / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser()
    for name in ("width", "layers", "heads", "length", "vocabulary", "count"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--batch", type=int, default=0)
    options = parser.parse_args()
    refuse_reference_blas()
    torch.manual_seed(1)
    model = FgramModel(options.width, options.layers, options.heads, options.length, options.vocabulary).eval()
    tokens = torch.randint(options.vocabulary, (options.count, options.length))
    lengths = torch.randint(2, options.length + 1, (options.count,))
    with torch.inference_mode():
        tried = {}
        for batch in [options.batch] if options.batch else BATCHES:
            for name, attention in ATTENTIONS.items():
                few = min(options.count, max(batch, 512))
                tries = [rate(model, tokens[:few], lengths[:few], batch, attention) for _ in range(3)]
                tried[batch, name] = max(tries)
        batch, name = max(tried, key=tried.get)
        print(f"torch_bake.py: batches of {batch}, attention by {name}; "
              + ", ".join(f"{key[0]} {key[1]} {value:.0f}/s" for key, value in tried.items()), file=sys.stderr)
        print(f"{rate(model, tokens, lengths, batch, ATTENTIONS[name]):.1f}")


if __name__ == "__main__":
    main()
