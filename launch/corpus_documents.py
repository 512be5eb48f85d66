#!/usr/bin/env python3
"""Turns an unpacked Debian package into JSON lines: corpus_documents.py NAME TREE OUTPUT.jsonl

One document a line, {"text": .., "source": ..}. A manual's page is a document; so is a dictionary's entry.
The output appears under its name only when it is whole.
"""

import gzip
import html.parser
import json
import re
import sys
from pathlib import Path

MINIMUM_CHARACTERS = 40  # shorter documents are headings or redirections
BASE64 = {c: i for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}


def read(path):
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    return data.decode("utf-8", errors="replace")


def source_files(tree, pattern):
    """Files of that name pattern, gzipped or not, in a fixed order; links name a file a second time."""
    found = [path for end in ("", ".gz") for path in tree.rglob(pattern + end) if path.is_file() and not path.is_symlink()]
    return sorted(found)


def plain_pages(tree, pattern):
    for path in source_files(tree, pattern):
        yield str(path.relative_to(tree)), read(path)


def pod_text(pod):
    """POD without its markup: commands become headings, formatting codes their content."""
    pod = re.sub(r"(?ms)^=(?:begin|for)\s.*?(?:^=end[^\n]*\n|\n\n)", "", pod)
    pod = re.sub(r"(?m)^=(?:pod|cut|over|back|encoding)\b[^\n]*\n", "", pod)
    pod = re.sub(r"(?m)^=(?:head\d|item)\s*", "", pod)
    entities = {"lt": "<", "gt": ">", "verbar": "|", "sol": "/"}
    pod = re.sub(r"E<(\w+)>", lambda m: entities.get(m.group(1), ""), pod)
    pod = re.sub(r"[XZ]<[^<>]*>", "", pod)
    pod = re.sub(r"L<([^<>|]*)\|[^<>]*>", r"\1", pod)
    for _ in range(3):  # codes nest
        pod = re.sub(r"[BCFILS](?:<<+ (.*?) >+>|<([^<>]*)>)", lambda m: m.group(1) or m.group(2) or "", pod)
    return pod


def pod_pages(tree):
    for pattern in ("*.pod", "*.pm"):
        for path in source_files(tree, pattern):
            text = read(path)
            if pattern == "*.pm":  # code, with POD between =command and =cut
                text = "\n".join(re.findall(r"(?ms)^=(?:head1|pod)\b.*?(?=^=cut|\Z)", text))
            yield str(path.relative_to(tree)), pod_text(text)


def dictionary_entries(tree):
    """dictd's format: one gzip file of text and an index of (headword, offset, length), numbers in its base 64."""

    def number(digits):
        value = 0
        for digit in digits:
            value = value * 64 + BASE64[digit]
        return value

    for index in sorted(tree.rglob("*.index")):
        text = gzip.decompress(index.with_suffix(".dict.dz").read_bytes())
        spans = set()
        for line in index.read_text(encoding="utf-8", errors="replace").splitlines():
            headword, offset, length = line.split("\t")[:3]
            if not headword.startswith("00"):  # 00-database-info and such
                spans.add((number(offset), number(length)))
        for offset, length in sorted(spans):
            yield f"{index.name}#{offset}", text[offset:offset + length].decode("utf-8", errors="replace")


class PageText(html.parser.HTMLParser):
    """A page's text: nothing of scripts, styles and navigation; blocks on lines of their own."""

    HIDDEN = {"script", "style", "nav", "head", "noscript", "svg", "button"}
    BLOCKS = {"p", "div", "li", "pre", "table", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "br", "dt", "dd", "section"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.parts, self.hidden, self.preformatted = [], 0, 0

    def handle_starttag(self, tag, attributes):
        self.hidden += tag in self.HIDDEN
        self.preformatted += tag == "pre"
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag):
        self.hidden -= tag in self.HIDDEN and self.hidden > 0
        self.preformatted -= tag == "pre" and self.preformatted > 0
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data):
        if not self.hidden:
            self.parts.append(data if self.preformatted else re.sub(r"\s+", " ", data))


def html_pages(tree):
    for path in source_files(tree, "*.html"):
        page = PageText()
        page.feed(read(path))
        text = "".join(page.parts)
        if not text.lstrip().startswith("Redirecting to "):  # a third of rust-doc's pages
            yield str(path.relative_to(tree)), text


def documents(name, tree):
    """(source, text) of each document of the package."""
    if name == "python3.11-doc":
        return plain_pages(tree, "*.rst.txt")
    if name == "linux-doc-6.1":
        return (page for page in plain_pages(tree, "*.rst") if "/translations/" not in page[0])
    if name == "perl-doc":
        return pod_pages(tree)
    if name.startswith("dict-"):
        return dictionary_entries(tree)
    return html_pages(tree)


def main(name, tree, output):
    partial = output.with_name(output.name + ".partial")
    count = characters = 0
    seen = set()
    with open(partial, "w", encoding="utf-8") as lines:
        for source, text in documents(name, tree):
            text = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text.replace("\r\n", "\n").replace("\0", ""))).strip()
            if len(text) < MINIMUM_CHARACTERS or hash(text) in seen:
                continue
            seen.add(hash(text))
            lines.write(json.dumps({"text": text + "\n", "source": f"{name}:{source}"}, ensure_ascii=False) + "\n")
            count += 1
            characters += len(text) + 1
    if count == 0:
        partial.unlink()
        sys.exit(f"corpus_documents: {name} holds no text where its Debian 12 package has it")
    partial.rename(output)
    print(f"corpus: {output}: {count} documents, {characters / 1e6:.1f} million characters")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
