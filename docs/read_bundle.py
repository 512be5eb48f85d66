#!/usr/bin/env python3
"""The f-gram table of a bundle (docs/bundle.md), read with numpy alone. read_bundle.py BUNDLE < TOKEN_IDS prints the
longest f-gram that ends at each token: its length, its id, the first numbers of its row. "0 -1": none ends there."""
import json, sys
from bisect import bisect_left
from itertools import count, takewhile
import numpy as np

def open_file(path, **expected):
    """The bytes of a file and its first page, which must say what is expected."""
    file = np.memmap(path, np.uint8, "r")
    page = json.loads(file[:4096].tobytes())
    size = sum(page["degrees"].values()) if "degrees" in page else 4096 + page["rows"] * page["record_bytes"]
    for key, value in {**expected, "bytes": size}.items():
        if (found := {**page, "bytes": file.size}.get(key)) != value:
            raise ValueError(f"{path}: {key}: expected {value!r}, found {found!r}")
    return file, page

class FgramIndex:
    """Exact map from n-grams to ids. Prefixes are numbered: first the tokens, behind them the f-grams by their ids."""
    def __init__(self, path, **expected):
        file, page = open_file(path, format="scone-fgram-index", format_version=1, **expected)
        vars(self).update(page)  # token_vocabulary_size, token_bits, id_bits, head_entries, max_length
        self.starts, self.directory, self.entries, self.degrees = (
            file[page[name]["offset"] :][: page[name]["bytes"]].view(dtype)
            for name, dtype in (("starts", "<u4"), ("directory", "<u4"), ("entries", "u1"), ("degrees", "u1")))

    def scattered(self, token):
        half, mask = (self.token_bits + 1) // 2, (1 << self.token_bits) - 1
        for factor in 0x9E3779B1, 0x85EBCA6B:
            token = (token ^ token >> half) * factor & mask
        return token ^ token >> half

    def entry(self, at):
        bits = self.token_bits + self.id_bits
        return int.from_bytes(self.entries[at * bits // 8 :][:8].tobytes(), "little") >> at * bits % 8 & (1 << bits) - 1

    def children(self, prefix):
        """First and end of a prefix's entries."""
        if (tail := prefix - (len(self.starts) - 1)) < 0:
            return self.starts[prefix : prefix + 2].tolist()
        end = int(self.directory[tail // 64])
        for _ in range(tail % 64 + 1):  # of each id of its 64 up to this one: a one for each child, then a zero
            first, end = end, next(bit for bit in count(end) if not self.degrees[bit // 8] >> bit % 8 & 1) + 1
        return self.head_entries + first - tail, self.head_entries + end - 1 - tail

    def grow(self, tokens):
        """The ids of tokens[:2], tokens[:3], .. as long as they are f-grams."""
        tokens = takewhile(range(self.token_vocabulary_size).__contains__, map(int, tokens))
        prefix = next(tokens, None)
        for token in map(self.scattered, tokens):
            first, end = self.children(prefix)
            at = bisect_left(range(end), token << self.id_bits, first, key=self.entry)
            if at == end or self.entry(at) >> self.id_bits != token:
                return
            yield (found := self.entry(at) & (1 << self.id_bits) - 1)
            prefix = self.token_vocabulary_size + found

    def find(self, ngram):
        """The id of an n-gram; -1: no f-gram."""
        return dict(enumerate(self.grow(ngram), 2)).get(len(ngram), -1)

    def match(self, tokens):
        """Length and id of the longest f-gram that ends at each token of one document; (0, -1): none."""
        matches = [(0, -1)] * len(tokens)
        for start in reversed(range(len(tokens))):  # of those that end together, the longest is put last
            for length, found in enumerate(self.grow(tokens[start : start + self.max_length]), 2):
                matches[start + length - 1] = length, found
        return matches

class FgramTable:
    """The rows of a bundle, and their index."""
    def __init__(self, bundle):
        about = json.load(open(f"{bundle}/bundle.json", encoding="utf-8"))
        if (about["format"], about["format_version"]) != ("scone-bundle", 2) or not about["table"]:
            raise ValueError(f"{bundle}/bundle.json: expected a bundle of version 2 with a table")
        vars(self).update(about["table"], fgrams=about["fgrams"]["fingerprint"])  # dtype, width, rows, ..
        self.index = FgramIndex(f"{bundle}/{self.index}", fgrams=self.fgrams, rows=self.rows)
        self.files = [open_file(f"{bundle}/table/rows-{file:05}.bin", format="scone-fgram-rows", format_version=2,
                                fgrams=self.fgrams, first_row=file * self.rows_per_file, dtype=self.dtype)[0][4096:]
                      .reshape(-1, self.record_bytes) for file in range(-(-self.rows // self.rows_per_file))]

    def lookup(self, ids):
        """fp32 [len(ids), width]."""
        records = np.empty((len(ids), self.record_bytes), np.uint8)
        for record, row in zip(records, map(int, ids)):
            if not 0 <= row < self.rows:
                raise IndexError(f"expected the id of a row, 0..{self.rows - 1}, found {row}")
            record[:] = self.files[row // self.rows_per_file][row % self.rows_per_file]
        if self.dtype == "int8":  # behind the numbers: the row's scale
            return records[:, : self.width].view("i1") * records[:, self.width :][:, :4].copy().view("<f4")
        if self.dtype == "bf16":  # the upper half of an fp32
            return (records.view("<u2")[:, : self.width].astype("<u4") << 16).view("<f4")
        return records.view({"fp32": "<f4", "fp16": "<f2"}[self.dtype])[:, : self.width].astype("<f4")

if __name__ == "__main__":
    table, tokens = FgramTable(sys.argv[1]), list(map(int, sys.stdin.read().split()))
    for i, (length, found) in enumerate(table.index.match(tokens)):
        print(f"{i}: token {tokens[i]}: {length} {found}",
              *map("{:.9g}".format, table.lookup([found])[0, :4] if length else ()))
