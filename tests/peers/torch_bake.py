#!/usr/bin/env python3
"""The f-gram model over padded n-grams in PyTorch, as a bake without sharing runs it, beside `scone bench bake`: batches
of [f-grams, K] tokens, causal attention, the last position's output. On CPUs whichever of fp32's two attention kernels
and batch sizes is faster. Prints f-grams a second (the median of three passes) as its last line."""
import argparse
import statistics
import sys
import time

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.ffw_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, mask):
        batch, length, width = x.shape
        parts = self.qkv(self.attention_norm(x)).split(width, dim=2)
        q, k, v = (part.view(batch, length, self.heads, width // self.heads).transpose(1, 2) for part in parts)
        if hasattr(functional, "scaled_dot_product_attention"):
            attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = q @ k.transpose(2, 3) * (width // self.heads) ** -0.5 + mask
            attended = scores.softmax(dim=3) @ v
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.ffw_norm(x)), approximate="tanh"))


class FgramModel(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.tokens = nn.Embedding(options.vocabulary, options.width)
        self.positions = nn.Embedding(options.length, options.width)
        self.blocks = nn.ModuleList(Block(options.width, options.heads) for _ in range(options.layers))
        self.norm = nn.LayerNorm(options.width)

    def forward(self, tokens, mask):
        x = self.tokens(tokens) + self.positions.weight
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x[:, -1])


def main():
    parser = argparse.ArgumentParser()
    for name in ("width", "layers", "heads", "length", "vocabulary", "count"):
        parser.add_argument("--" + name, type=int, required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    model = FgramModel(options).to(options.device).eval()
    tokens = torch.randint(options.vocabulary, (options.count, options.length), device=options.device)
    mask = torch.full((options.length, options.length), float("-inf"), device=options.device).triu(1)

    def seconds(batch, count):
        start = time.perf_counter()
        for begin in range(0, count, batch):
            model(tokens[begin : min(begin + batch, count)], mask)
        if options.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    with torch.inference_mode():
        trial = min(options.count, 2048)
        batch = min((128, 512, 2048), key=lambda size: (seconds(size, trial), seconds(size, trial))[1])
        passes = [options.count / seconds(batch, options.count) for _ in range(3)]
    print(f"batch {batch}, {torch.get_num_threads()} threads", file=sys.stderr)
    print(statistics.median(passes))


if __name__ == "__main__":
    main()
