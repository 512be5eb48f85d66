#!/usr/bin/env python3
"""Training steps of GPT-2 shapes in PyTorch at its best, beside `scone bench step`: torch.compile where it is, fp32 or bf16
autocast with fp32 weights, fused AdamW on a GPU, scaled_dot_product_attention (flash attention) where it is, synthetic tokens.

  torch_step.py [--shapes gpt2-124m,gpt2-1.5b] [--device cuda] [--dtype bf16] [--batch-tokens N] [--microbatch-tokens N]
                [--context N] [--rounds N]

Prints a line a shape: milliseconds of a step (median), tokens/s. The last line is JSON."""
import argparse
import contextlib
import json
import statistics
import time

from torch_environment import refuse_reference_blas, restart_at_its_best

if __name__ == "__main__":
    restart_at_its_best()

import torch
from torch import nn
from torch.nn import functional

SHAPES = {  # width, layers, heads, context, vocabulary
    "gpt2-30m": (384, 6, 6, 256, 50257),
    "gpt2-124m": (768, 12, 12, 1024, 50257),
    "gpt2-1.5b": (1600, 48, 25, 1024, 50257),
    "tiny": (64, 2, 4, 64, 512),
}


def causal_attention(q, k, v):
    if hasattr(functional, "scaled_dot_product_attention"):
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
    later = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill_(later, float("-inf")).softmax(-1).to(v.dtype) @ v


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.ffw_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(self.attention_norm(x)).split(width, dim=2)
        )
        attended = causal_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.ffw_norm(x)), approximate="tanh"))


class Model(nn.Module):
    def __init__(self, width, layers, heads, context, vocabulary):
        super().__init__()
        padded = (vocabulary + 63) // 64 * 64  # as its users do: matrix units want whole tiles
        self.tokens, self.positions = nn.Embedding(padded, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens, targets):
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = functional.linear(self.norm(x), self.tokens.weight)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def measure(name, options):
    width, layers, heads, context, vocabulary = SHAPES[name]
    context = options.context or context
    device = torch.device(options.device)
    torch.manual_seed(1)
    model = Model(width, layers, heads, context, vocabulary).to(device)
    fused = {"fused": True} if device.type == "cuda" else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, **fused)
    step_model = torch.compile(model) if options.compile and hasattr(torch, "compile") else model
    count = options.batch_tokens // options.microbatch_tokens
    shape = (count, options.microbatch_tokens // context, context)
    tokens, targets = (torch.randint(vocabulary, shape, device=device) for _ in range(2))

    def step():
        for part in range(count):
            with (torch.autocast(device.type, dtype=torch.bfloat16) if options.dtype == "bf16"
                  else contextlib.nullcontext()):
                loss = step_model(tokens[part], targets[part]) / count
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item() * count  # waits for the device

    seconds = []
    for index in range(options.rounds + 3):
        start = time.perf_counter()
        loss = step()
        if index >= 3:
            seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    rate = options.batch_tokens / median
    print(f"{name:<12} {median * 1e3:10.1f} ms {rate:12.0f} tokens/s, loss {loss:.4f}", flush=True)
    return {"shape": name, "step_seconds": seconds, "tokens_per_second": rate}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", default="gpt2-124m")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--context", type=int, default=0, help="in place of the shape's")
    parser.add_argument("--batch-tokens", type=int, default=65536)
    parser.add_argument("--microbatch-tokens", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    options = parser.parse_args()
    if options.device == "cpu":
        refuse_reference_blas()
    rows = [measure(name, options) for name in options.shapes.split(",")]
    print(json.dumps({"torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
