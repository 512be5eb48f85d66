#!/usr/bin/env python3
"""Compares losses, every gradient and ten AdamW steps with PyTorch.

usage: torch_reference.py FOLDER      FOLDER: written by scone_dump_reference

The PyTorch model is the plain reading of the SCONE paper, in double precision: every matched f-gram is run alone
through the f-gram model, gradients come from autograd, and both models are trained jointly by torch.optim.AdamW with
clipping over both. Exit code 1 where a number differs by more than its tolerance.
"""
import json
import math
import pathlib
import sys

import numpy
import torch
import torch.nn.functional as F

EPSILON = 2.0 ** -23  # fp32
# First step: rounding over products and sums a few hundred long.
FIRST_STEP_TOLERANCE = 400 * EPSILON
# Later steps amplify rounding by an amount that depends on the case. It is measured: the same double-precision
# training is run again from parameters changed by EPSILON, and ours may differ from PyTorch by this many times that.
AMPLIFICATION_MARGIN = 10


def norm(config, parameters, name, x):
    gain = parameters[name + ".gain"]
    if config["norm"] == "rmsnorm":
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * gain
    return F.layer_norm(x, gain.shape, gain, parameters.get(name + ".bias"), 1e-5)


def linear(parameters, name, x):
    return F.linear(x, parameters[name + ".weight"], parameters.get(name + ".bias"))


def rotate(x):
    """x: [heads, n, head width]; rotates pairs (i, i + half) by position * 10000^(-2 i / head width)."""
    n, width = x.shape[1], x.shape[2]
    frequency = 10000.0 ** (-torch.arange(0, width, 2, dtype=x.dtype) / width)
    angle = torch.arange(n, dtype=x.dtype)[:, None] * frequency[None, :]
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * angle.cos() - high * angle.sin(), high * angle.cos() + low * angle.sin()], -1)


def attention(config, parameters, name, x, mask):
    n, width = x.shape
    heads = config["heads"]
    q, k, v = (part.view(n, heads, width // heads).transpose(0, 1)
               for part in linear(parameters, name + ".qkv", x).chunk(3, dim=-1))
    if config["position"] == "rope":
        q, k = rotate(q), rotate(k)
    scores = q @ k.transpose(1, 2) / (width // heads) ** 0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return linear(parameters, name + ".out", (weights @ v).transpose(0, 1).reshape(n, width))


def ffw(config, parameters, name, x):
    up = linear(parameters, name + ".up", x)
    if config["activation"] == "swiglu":
        inner = F.silu(linear(parameters, name + ".gate", x)) * up
    else:
        inner = 0.5 * up * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (up + 0.044715 * up ** 3)))
    return linear(parameters, name + ".down", inner)


def transformer(config, parameters, prefix, x, start):
    """x: [n, width]; position i attends to start[i] .. i."""
    n = x.shape[0]
    if config["position"] == "learned":
        x = x + parameters[prefix + "position_embedding"][:n]
    place = torch.arange(n)
    mask = (place[None, :] <= place[:, None]) & (place[None, :] >= torch.tensor(start)[:, None])
    for layer in range(config["layers"]):
        block = f"{prefix}blocks.{layer}."
        x = x + attention(config, parameters, block + "attention",
                          norm(config, parameters, block + "attention_norm", x), mask)
        x = x + ffw(config, parameters, block + "ffw", norm(config, parameters, block + "ffw_norm", x))
    return norm(config, parameters, prefix + "final_norm", x)


def mean_loss(config, parameters, batch):
    tokens = parameters["main.token_embedding"]
    head = tokens if config["tie_embeddings"] else parameters["main.head"]
    length = batch["length"]
    logits = []
    for begin in range(0, batch["sequences"] * length, length):
        inputs = []
        for i in range(begin, begin + length):
            embedding = tokens[batch["tokens"][i]]
            match = batch["match"][i]
            if match:
                row = transformer(config["fgram"], parameters, "fgram.", tokens[match], [0] * len(match))[-1]
                embedding = row + embedding if config["combine"] == "add" else row
            inputs.append(embedding)
        output = transformer(config["main"], parameters, "main.", torch.stack(inputs),
                             batch["attention_start"][begin:begin + length])
        logits.append(output @ head.T)
    return F.cross_entropy(torch.cat(logits), torch.tensor(batch["targets"]), ignore_index=-1)


def read(path, specs):
    flat = numpy.fromfile(path, dtype=numpy.float32).astype(numpy.float64)
    values, offset = {}, 0
    for spec in specs:
        size = int(numpy.prod(spec["shape"]))
        values[spec["name"]] = torch.from_numpy(flat[offset:offset + size].reshape(spec["shape"]).copy())
        offset += size
    if offset != flat.size:
        sys.exit(f"{path}: {flat.size} numbers, expected {offset}; write it again with scone_dump_reference")
    return values


def train(dump, initial):
    """Losses, gradient norms, the first step's gradients and the final parameters."""
    parameters = {key: value.clone().requires_grad_() for key, value in initial.items()}
    optimizer = dump["optimizer"]
    groups = [{"params": [parameters[spec["name"]] for spec in dump["parameters"] if spec["weight_decay"] == decayed],
               "weight_decay": optimizer["weight_decay"] if decayed else 0.0} for decayed in (True, False)]
    adamw = torch.optim.AdamW(groups, lr=optimizer["lr"], betas=tuple(optimizer["betas"]), eps=optimizer["eps"])
    losses, norms, gradients = [], [], None
    for batch in dump["steps"]:
        adamw.zero_grad()
        loss = mean_loss(dump["config"], parameters, batch)
        loss.backward()
        if gradients is None:
            gradients = {key: value.grad.clone() for key, value in parameters.items()}
        norms.append(torch.nn.utils.clip_grad_norm_(list(parameters.values()), optimizer["clip"]).item())
        adamw.step()
        losses.append(loss.item())
    return losses, norms, gradients, {key: value.detach() for key, value in parameters.items()}


def max_or_nan(values):
    """NaN where one is, which max() may drop."""
    values = list(values)
    return math.nan if any(map(math.isnan, values)) else max(values)


def largest_ratio(found, expected):
    return max_or_nan(abs(a / b - 1) for a, b in zip(found, expected))


def largest_difference(found, expected, scale):
    """Over all parameters, the largest difference relative to the largest element of scale."""
    return max_or_nan(((found[key] - expected[key]).abs().max() / scale[key].abs().max().clamp(min=1e-3)).item()
                      for key in expected)


def compare(folder, name):
    dump = json.loads((folder / f"{name}.json").read_text())
    initial, gradients, final = (read(folder / f"{name}.{what}.bin", dump["parameters"])
                                 for what in ("initial", "gradients", "final"))
    losses, norms, torch_gradients, torch_final = train(dump, initial)
    torch.manual_seed(0)
    nudged = {key: value * (1 + EPSILON * torch.randn_like(value)) for key, value in initial.items()}
    nudged_losses, nudged_norms, _, nudged_final = train(dump, nudged)
    change = {key: torch_final[key] - initial[key] for key in initial}
    checks = [
        ("first loss", largest_ratio(dump["losses"][:1], losses), FIRST_STEP_TOLERANCE),
        ("first gradient", largest_difference(gradients, torch_gradients, torch_gradients), FIRST_STEP_TOLERANCE)]
    for what, found, control in (
            ("losses", largest_ratio(dump["losses"], losses), largest_ratio(nudged_losses, losses)),
            ("gradient norms", largest_ratio(dump["gradient_norms"], norms), largest_ratio(nudged_norms, norms)),
            ("change of parameters", largest_difference(final, torch_final, change),
             largest_difference(nudged_final, torch_final, change))):
        checks.append((what, found, AMPLIFICATION_MARGIN * control + 10 * EPSILON))
    print(f"{name}: {len(dump['parameters'])} parameters, {len(losses)} steps; largest relative difference (allowed): "
          + ", ".join(f"{what} {found:.1e} ({allowed:.1e})" for what, found, allowed in checks))
    return all(found <= allowed for _, found, allowed in checks)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    names = sorted(path.stem for path in folder.glob("*.json"))
    if not names:
        sys.exit(f"{folder}: no *.json; run scone_dump_reference {folder} first")
    good = [compare(folder, name) for name in names]
    print("PyTorch agrees" if all(good) else "PyTorch DISAGREES")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
