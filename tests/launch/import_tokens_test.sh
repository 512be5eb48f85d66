#!/usr/bin/env bash
# Token files of other trainers become the shards that `scone tokenize` makes of the same text, on any ranks and threads, and
# damaged ones are refused with nothing half-written: import_tokens_test.sh SCONE
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
find_python

# refuses MESSAGE COMMAND..: exit code 2, MESSAGE on stderr, nothing left in bad/.
refuses() {
  local message=$1 code=0
  shift
  "$@" >out 2>err || code=$?
  if [ "$code" != 2 ] || ! grep -q -- "$message" err || [ -e bad ]; then
    fail "expected exit code 2, '$message' and no folder bad from: $* (found exit code $code): $(cat err)"
  fi
}

"$python" - <<'PYTHON'
import json, random
random.seed(5)
words = "the of a model token corpus rank frequent gram table row page vector layer 日本 naïve 🙂".split()
with open("text.jsonl", "w") as lines:  # 13 MB: several pieces
    for d in range(25000):
        text = " ".join(random.choice(words) for _ in range(90)) + " %d\n" % d
        lines.write(json.dumps({"text": text}) + "\n")
PYTHON
"$scone" tokenize --input text.jsonl --output first --train-tokenizer 400 --validation-fraction 0 >/dev/null
with=("$scone" tokenize --tokenizer first/tokenizer.model --shard-tokens 300K --validation-fraction 0.1)
"${with[@]}" --input text.jsonl --output text >/dev/null
for np in 2 3; do
  "$mpirun" -np "$np" "${with[@]}" --input text.jsonl --output "ranks$np" --threads 2 >/dev/null
  diff -r text "ranks$np" || fail "$np ranks gave other shards"
done
[ "$(ls text/train | wc -l)" -gt 5 ] || fail "too few shards to tell ranks: $(ls text/train)"

"$python" - <<'PYTHON'
import h5py, numpy, struct
shard = h5py.File("first/train/shard-00000.h5")
ids, offsets, end = shard["tokens"][:], shard["document_offsets"][:], int(shard.attrs["end_of_document"])
assert end >= 0 and len(offsets) == 25001
def llm_c(name, tokens, magic=20240520, version=1, dtype="<u2"):
    header = numpy.zeros(256, "<i4")
    header[:3] = magic, version, len(tokens)
    with open(name, "wb") as file:
        file.write(header.tobytes() + tokens.astype(dtype).tobytes())
# llm.c puts the separator before each document, and cuts files anywhere.
before = numpy.concatenate([[end], ids[:-1]])
third = len(before) // 3
llm_c("llmc_0.bin", before[:third])
llm_c("llmc_1.bin", before[third:], 20240801, 7, "<u4")
ids.astype("<u2").tofile("nano16.bin")
ids.astype("<u4").tofile("nano32.bin")
ids.astype("<i4").tofile("megatron.bin")
lengths = numpy.diff(offsets)
with open("megatron.idx", "wb") as file:
    file.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 4, len(lengths), len(offsets)))
    file.write(lengths.astype("<i4").tobytes() + (offsets[:-1] * 4).astype("<i8").tobytes())
    file.write(numpy.arange(len(offsets), dtype="<i8").tobytes())
PYTHON
import() { "${with[@]}" "${@:2}" --output "$1" >/dev/null; diff -r text "$1" || fail "$1: not the shards of the text"; }
import llmc --from llm.c --input llmc_0.bin llmc_1.bin
import nano16 --from nanogpt --input nano16.bin --threads 3
import nano32 --from nanogpt --token-bits 32 --input nano32.bin
import megatron --from megatron --input megatron
with=("$mpirun" -np 3 "${with[@]}")
import megatron3 --from megatron --input megatron.idx
import llmc3 --from llm.c --input llmc_0.bin llmc_1.bin --threads 2

bad=("$scone" tokenize --tokenizer first/tokenizer.model --output bad)
refuses "need the tokenizer" "$scone" tokenize --from llm.c --input llmc_0.bin --output bad --train-tokenizer 400
refuses "20240520" "${bad[@]}" --from llm.c --input nano16.bin
head -c 5000 llmc_0.bin >cut.bin
refuses "cut.bin: the header says" "${bad[@]}" --from llm.c --input cut.bin
refuses "token-bits" "${bad[@]}" --from llm.c --token-bits 32 --input llmc_0.bin
head -c 4001 nano16.bin >odd.bin
refuses "odd.bin: 4001 bytes" "${bad[@]}" --from nanogpt --input odd.bin
cp megatron.idx cut.idx
refuses "cut.idx does not fit cut.bin" "${bad[@]}" --from megatron --input cut.idx
head -c 1000 megatron.idx >cut.idx
refuses "cut.idx: its header says 25000 sequences" "${bad[@]}" --from megatron --input cut
printf '\377\377\001\000' >large.bin
refuses "large.bin: token 0 is 65535" "${bad[@]}" --from nanogpt --input large.bin
refuses "large.bin: token 0 is 65535" "$mpirun" -np 2 "${bad[@]}" --from nanogpt --input large.bin
# A bad line in one rank's part ends all of them, and names its line.
sed '20000s/text/txet/' text.jsonl >line.jsonl
refuses "line.jsonl:20000" "$mpirun" -np 3 "${bad[@]}" --input line.jsonl
refuses "NUL" "${bad[@]}" --input nano16.bin
echo "import: the shards of the text from every format, over ranks and threads; damaged files are refused"
