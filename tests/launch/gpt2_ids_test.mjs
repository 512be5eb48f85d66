// Works in the folder given, which holds node_modules/js-tiktoken. Writes
//   tokenizer.json  GPT-2's tokenizer in Hugging Face's form, from the package's ranks
//   text.txt        1 MB of mixed text, always the same
//   ids.json        the ids that js-tiktoken gives for it
// Merges are recovered from the ranks: a token's two parts are what the merges of lower rank leave
// of its bytes.
import { createRequire } from "node:module";
import { writeFileSync } from "node:fs";
import { join, resolve } from "node:path";

const folder = resolve(process.argv[2]);
const require = createRequire(join(folder, "package.json"));
const { Tiktoken } = require("js-tiktoken/lite");
const ranksModule = require("js-tiktoken/ranks/gpt2");
const gpt2 = ranksModule.default ?? ranksModule;

function readRanks(text) {
  const idOf = new Map(); // bytes as a Latin-1 string
  for (const line of text.split("\n")) {
    if (!line) continue;
    const [, offset, ...tokens] = line.split(" ");
    tokens.forEach((token, i) => {
      idOf.set(Buffer.from(token, "base64").toString("latin1"), Number(offset) + i);
    });
  }
  return idOf;
}

function byteAlphabet() {
  const characters = [];
  let next = 256;
  for (let byte = 0; byte < 256; ++byte) {
    const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    characters.push(String.fromCharCode(printable ? byte : next++));
  }
  return characters;
}

/** The parts that merges of rank below `limit` leave of the bytes. */
function mergeBelow(bytes, idOf, limit) {
  const parts = [...bytes];
  for (;;) {
    let best = -1;
    let bestRank = limit;
    for (let i = 0; i + 1 < parts.length; ++i) {
      const rank = idOf.get(parts[i] + parts[i + 1]);
      if (rank !== undefined && rank < bestRank) [best, bestRank] = [i, rank];
    }
    if (best < 0) return parts;
    parts.splice(best, 2, parts[best] + parts[best + 1]);
  }
}

function tokenizerJson(idOf) {
  const alphabet = byteAlphabet();
  const written = (bytes) => [...bytes].map((c) => alphabet[c.charCodeAt(0)]).join("");
  const vocab = {};
  const merges = [];
  for (const [bytes, id] of [...idOf].sort((a, b) => a[1] - b[1])) {
    vocab[written(bytes)] = id;
    if (bytes.length === 1) continue;
    const parts = mergeBelow(bytes, idOf, id);
    if (parts.length !== 2) throw new Error(`token ${id}: ${parts.length} parts instead of 2`);
    merges.push(`${written(parts[0])} ${written(parts[1])}`);
  }
  vocab["<|endoftext|>"] = 50256;
  if (Object.keys(vocab).length !== 50257) throw new Error("GPT-2 has 50257 tokens");
  return {
    version: "1.0",
    added_tokens: [{ id: 50256, content: "<|endoftext|>", special: true }],
    normalizer: null,
    pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true },
    post_processor: null,
    decoder: { type: "ByteLevel" },
    model: { type: "BPE", unk_token: null, vocab, merges },
  };
}

/** Numbers below n, always the same. */
function generator(seed) {
  let state = BigInt(seed);
  return (n) => {
    state = (state * 6364136223846793005n + 1442695040888963407n) & 0xffffffffffffffffn;
    return Number((state >> 33n) % BigInt(n));
  };
}

function mixedText(size) {
  const below = generator(20250);
  const pick = (list) => list[below(list.length)];
  const between = (low, high) => String.fromCodePoint(low + below(high - low + 1));
  const many = (most, make) => Array.from({ length: 1 + below(most) }, make).join("");
  const words = ("the of and scalable embedding layers don't we've I'll THEY'RE it's antidisestablishment " +
    "naïve café Ünïcode Straße tokenizer perplexity supercalifragilistic e.g. http://example.org/a?b=c&d=%20").split(" ");
  const code = [
    "for (int i = 0; i < n; ++i) {\n\t\tsum += x[i] * 0x1F;\n\t}\n",
    "def f(self, *args, **kwargs):\n    return {k: v for k, v in kwargs.items() if k not in ('a', \"b\")}\n",
    "#include <vector>\r\n#define MAX(a,b) ((a)>(b)?(a):(b))\r\n",
    "SELECT COUNT(*) FROM t WHERE id >= 10 AND name LIKE '%x_%'; -- why?\n",
    "<div class=\"row\"><a href='#'>&nbsp;</a></div>\n\n\n",
  ];
  const emoji = ["🙂", "👩🏽‍🚀", "🇯🇵", "❤️", "🤷‍♂️", "🧑‍🤝‍🧑", "💯", "™️"];
  const makers = [
    () => many(12, () => " " + pick(words)),
    () => pick(words) + pick([",", ".", "!?", "…", " — ", ";", ":", "\n"]),
    () => pick(code),
    () => many(4, () => pick(emoji)) + pick(["", " ", "!"]),
    () => many(9, () => between(0x4e00, 0x9fa5)) + pick(["。", "、", "", " "]), // CJK
    () => many(9, () => between(0x3041, 0x3096)), // Hiragana
    () => many(6, () => between(0xac00, 0xd7a3)) + " ", // Hangul
    () => many(8, () => between(0x410, 0x44f)) + " ", // Cyrillic
    () => many(8, () => between(0x5d0, 0x5ea)) + many(3, () => between(0x660, 0x669)), // Hebrew, digits
    () => many(5, () => between(0x915, 0x939) + pick(["\u093e", "\u094d", "\u0947", ""])), // Devanagari
    () => many(7, () => pick(["a", "o", "e"]) + between(0x300, 0x30f)), // combining marks
    () => " ".repeat(1 + below(40)),
    () => pick(["\n", "\t", "\r\n", "\u00a0", "\u2003", "\u3000", "\u2028", " \n \n", "\t\t  x"]),
    () => pick(["", " ", "-", "$"]) + below(10 ** (1 + below(12))),
    () => pick(["½", "Ⅷ", "²", "①", "൧"]),
    () => many(30, () => between(0x21, 0x7e)),
    () => pick(["<|endoftext|>", "</s>", "[MASK]"]),
    () => pick(["=", "-", "aA", "ab", "0", "!"]).repeat(1 + below(90)),
  ];
  let text = "";
  let bytes = 0;
  while (bytes < size) {
    const part = pick(makers)();
    text += part;
    bytes += Buffer.byteLength(part);
  }
  return text;
}

const idOf = readRanks(gpt2.bpe_ranks);
writeFileSync(join(folder, "tokenizer.json"), JSON.stringify(tokenizerJson(idOf)));
const text = mixedText(1_000_000);
writeFileSync(join(folder, "text.txt"), text);
const ids = new Tiktoken(gpt2).encode(text, [], []); // specials are plain text
writeFileSync(join(folder, "ids.json"), JSON.stringify(ids));
console.log(`${Buffer.byteLength(text)} bytes, ${ids.length} ids`);
