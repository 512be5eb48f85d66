// Encodes every text of a JSONL file once with another tokenizer library, on one thread, and prints
// {"seconds", "tokens", "id_sum"}: node tokenizer_peers.mjs PACKAGES TEXTS.jsonl TOKENIZER.json PEER
// PEER: tiktoken (its own GPT-2), tokenizers (Hugging Face's, with TOKENIZER.json).
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";

const [packages, textFile, tokenizerFile, peer] = process.argv.slice(2);
const require = createRequire(join(resolve(packages), "package.json"));
const texts = readFileSync(textFile, "utf8").split("\n").filter(Boolean)
  .map((line) => JSON.parse(line).text);

/** tokenizer.json with every key that this library's version insists on. */
function completed(json) {
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false };
  const byteLevel = { add_prefix_space: true, trim_offsets: true, use_regex: true };
  json.added_tokens = (json.added_tokens ?? []).map((token) => ({ ...flags, ...token }));
  for (const key of ["pre_tokenizer", "decoder"]) {
    if (json[key]?.type === "ByteLevel") json[key] = { ...byteLevel, ...json[key] };
  }
  json.model = {
    dropout: null, unk_token: null, continuing_subword_prefix: null, end_of_word_suffix: null,
    fuse_unk: false, ...json.model,
  };
  return { truncation: null, padding: null, normalizer: null, post_processor: null, decoder: null, ...json };
}

function makeEncode() {
  if (peer === "tiktoken") {
    const encoding = require("tiktoken").get_encoding("gpt2");
    return async (text) => encoding.encode(text, [], []); // special tokens are plain text
  }
  const { Tokenizer } = require("@anush008/tokenizers");
  const tokenizer = Tokenizer.fromString(JSON.stringify(completed(JSON.parse(readFileSync(tokenizerFile)))));
  return async (text) => (await tokenizer.encode(text, null, { addSpecialTokens: false })).getIds();
}

const encode = makeEncode();
for (const text of texts.slice(0, 200)) await encode(text); // compiled, caches begun
let seconds = 0;
let tokens = 0;
let idSum = 0;
for (const text of texts) {
  const begin = performance.now();
  const ids = await encode(text);
  seconds += (performance.now() - begin) / 1e3;
  tokens += ids.length;
  for (const id of ids) idSum += id;
}
console.log(JSON.stringify({ seconds, tokens, id_sum: idSum }));
