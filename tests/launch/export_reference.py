#!/usr/bin/env python3
"""Loss of an exported model in PyTorch, compared with scone's.

usage: export_reference.py EXPORT VALIDATION RESULT.json
       EXPORT: folder of `scone export`; VALIDATION: folder of token shards; RESULT.json: of `scone eval --json` on them

Reads nothing but the exported files. The models are those of tests/model/torch_reference.py, in double precision, every
f-gram alone. Exit code 1 where the losses differ by more than 1e-5, relative.
"""
import json
import pathlib
import re
import sys

import h5py
import numpy
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "model"))
import torch_reference

TOLERANCE = 1e-5


def read_safetensors(path):
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        assert entry["dtype"] == "F32", (name, entry)
        begin, end = entry["data_offsets"]
        values = numpy.frombuffer(data[8 + size + begin:8 + size + end], dtype="<f4").reshape(entry["shape"])
        tensors[name] = torch.from_numpy(values.astype(numpy.float64))
    return tensors


def renamed(tensors, prefix):
    """From the exported names to those that torch_reference uses."""
    parameters, taken = {}, set()

    def take(name):
        taken.add(name)
        return tensors.get(name)

    def put(name, value):
        if value is not None:
            parameters[prefix + name] = value

    put("token_embedding", take("model.embed_tokens.weight"))
    put("position_embedding", take("model.embed_positions.weight"))
    put("head", take("lm_head.weight"))
    put("final_norm.gain", take("model.norm.weight"))
    put("final_norm.bias", take("model.norm.bias"))
    layers = 1 + max(int(re.match(r"model\.layers\.(\d+)\.", name)[1]) for name in tensors if ".layers." in name)
    for layer in range(layers):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        for norm, name in (("attention_norm", "input_layernorm"), ("ffw_norm", "post_attention_layernorm")):
            put(f"{ours}{norm}.gain", take(f"{theirs}{name}.weight"))
            put(f"{ours}{norm}.bias", take(f"{theirs}{name}.bias"))
        for kind in ("weight", "bias"):
            qkv = [take(f"{theirs}self_attn.{part}_proj.{kind}") for part in "qkv"]
            put(f"{ours}attention.qkv.{kind}", torch.cat(qkv) if qkv[0] is not None else None)
            put(f"{ours}attention.out.{kind}", take(f"{theirs}self_attn.o_proj.{kind}"))
            for part in ("gate", "up", "down"):
                put(f"{ours}ffw.{part}.{kind}", take(f"{theirs}mlp.{part}_proj.{kind}"))
    assert taken >= set(tensors), f"unknown tensors {set(tensors) - taken}"
    return parameters


def read_fgrams(path, description):
    """{tuple of tokens} of the f-grams that the model uses."""
    with h5py.File(path) as file:
        prefix, last = file["prefix"][:description["size"]], file["last_token"][:description["size"]]
        vocabulary_size = int(file.attrs["vocabulary_size"])
    fgrams = []
    for before, token in zip(prefix.tolist(), last.tolist()):
        fgrams.append((fgrams[before - vocabulary_size] if before >= vocabulary_size else (before,)) + (token,))
    return {fgram for fgram in fgrams if len(fgram) <= description["max_length"]}


def windows(validation, length, across, fgrams, longest):
    """Windows of the shards' tokens one after another, in the form that torch_reference.mean_loss takes."""
    tokens, starts = [], set()
    for path in sorted(validation.glob("*.h5")):
        with h5py.File(path) as file:
            starts.update((len(tokens) + file["document_offsets"][:-1]).tolist())
            tokens += file["tokens"][:].tolist()
    for begin in range(0, len(tokens) - 1, length):
        end = min(begin + length, len(tokens))
        batch = {"sequences": 1, "length": end - begin, "tokens": tokens[begin:end], "targets": [], "attention_start": [], "match": []}
        document = 0
        for i in range(begin, end):
            if i in starts:
                document = i - begin
            last = i + 1 >= len(tokens) or (i + 1 in starts and not across)
            batch["targets"].append(-1 if last else tokens[i + 1])
            batch["attention_start"].append(0 if across else document)
            place = i - begin
            match = []
            for first in range(max(document, place - longest + 1), place):
                candidate = tuple(batch["tokens"][first:place + 1])
                if candidate in fgrams:
                    match = list(candidate)
                    break
            batch["match"].append(match)
        yield batch


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    export, validation, result = (pathlib.Path(argument) for argument in sys.argv[1:])
    config = json.loads((export / "config.json").read_text())
    parameters = renamed(read_safetensors(export / "model.safetensors"), "main.")
    fgrams, longest = set(), 1
    if config["fgrams"]:
        parameters.update(renamed(read_safetensors(export / "fgram_model.safetensors"), "fgram."))
        fgrams, longest = read_fgrams(export / config["fgrams"]["file"], config["fgrams"]), config["fgrams"]["max_length"]
    total, count, matched = 0.0, 0, 0
    with torch.no_grad():
        for batch in windows(validation, config["sequence_length"], config["attention_across_documents"], fgrams, longest):
            predicted = [i for i, target in enumerate(batch["targets"]) if target >= 0]
            if not predicted:
                continue
            total += torch_reference.mean_loss(config["model"], parameters, batch).item() * len(predicted)
            count += len(predicted)
            matched += sum(1 for i in predicted if batch["match"][i])
    ours = json.loads(result.read_text())
    loss = total / count
    difference = abs(ours["loss"] / loss - 1)
    print(f"{export}: PyTorch {loss:.8f}, scone {ours['loss']:.8f}, relative difference {difference:.1e} (allowed {TOLERANCE:.0e}); "
          f"{count} tokens, {matched} from f-gram rows")
    same = count == ours["tokens"] and matched == ours["matched"]
    if not same:
        print(f"{export}: scone predicted {ours['tokens']} tokens, {ours['matched']} of them from f-gram rows")
    return 0 if same and difference <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
