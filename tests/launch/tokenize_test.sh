#!/usr/bin/env bash
# scone tokenize as a user runs it: shards that h5py reads, the same bytes whatever the threads, ranks and
# compression, text that survives, and bad input refused with nothing half-written.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
find_python

# mends MESSAGE COMMAND..: the command must end with exit code 2, say MESSAGE on stderr and leave nothing in bad/.
mends() {
  local message=$1 code=0
  shift
  "$@" >out 2>err || code=$?
  if [ "$code" != 2 ] || ! grep -q -- "$message" err || [ -e bad ]; then
    cat err
    fail "expected exit code 2, '$message' and no folder bad from: $* (found exit code $code, and the above)"
  fi
}

"$python" - <<'PYTHON'
import json, os, random
random.seed(11)
words = "the of a model token corpus rank frequent gram table row page vector layer 日本 naïve 🙂 x=1;".split()
words += ["".join(random.choice("ka to mi re su len der tion ing st".split()) for _ in range(3)) for _ in range(300)]
os.makedirs("files/sub")
with open("text.jsonl", "w") as lines:
    for d in range(400):
        text = " ".join(random.choice(words) for _ in range(60)) + "\n\n  indented\t%d\n" % d
        lines.write(json.dumps({"id": d, "text": text}, ensure_ascii=d % 2 == 0) + "\n")
        if d < 40:
            with open("files/%s%03d.txt" % ("sub/" if d % 3 == 0 else "", d), "w") as file:
                file.write(text)
PYTHON

"$scone" tokenize --input text.jsonl --output one --train-tokenizer 600 --validation-fraction 0.1 --json >one.json
cat >check.py <<'PYTHON'
import glob, json, sys, h5py, numpy
result = json.loads(open("one.json").readlines()[-1])
texts = [json.loads(line)["text"] for line in open("text.jsonl")]
assert result["documents"] == 400 and result["text_bytes"] == sum(len(t.encode()) for t in texts), result
assert result["vocabulary_size"] == 600 and result["invalid_sequences"] == 0, result
assert abs(result["bytes_per_token"] - result["text_bytes"] / result["tokens"]) < 1e-9, result
assert 15 <= result["validation"]["documents"] <= 75, result  # 40, five standard deviations of 6
totals = [0, 0, 0]
for side in "train", "validation":
    documents = tokens = 0
    for name in sorted(glob.glob("one/%s/*.h5" % side)):
        with h5py.File(name, "r") as shard:
            a = dict(shard.attrs)
            as_text = lambda value: value.decode() if isinstance(value, bytes) else value
            assert as_text(a["format"]) == "scone-tokens" and a["format_version"] == 1, a
            assert as_text(a["tokenizer_fingerprint"]) == result["tokenizer_fingerprint"], a
            assert len(as_text(a["checksum"])) == 16 and a["vocabulary_size"] == 600, a
            ids, offsets = shard["tokens"], shard["document_offsets"]
            assert ids.dtype == numpy.uint16 and ids.chunks is None and ids.shape == (a["tokens"],), ids
            assert offsets.dtype == numpy.int64 and offsets.shape == (a["documents"] + 1,), offsets
            offsets, ids = offsets[:], ids[:]
            assert offsets[0] == 0 and offsets[-1] == len(ids) and (numpy.diff(offsets) > 1).all()
            assert ids.max() < 600
            end = a["end_of_document"]
            assert end >= 0 and (ids[offsets[1:] - 1] == end).all() and (ids == end).sum() == a["documents"]
            documents += a["documents"]
            tokens += a["tokens"]
            totals[2] += a["text_bytes"]
    assert documents == result[side]["documents"] and tokens == result[side]["tokens"], (side, documents, tokens)
    totals[0] += documents
    totals[1] += tokens
assert totals == [400, result["tokens"], result["text_bytes"]], totals
PYTHON
"$python" check.py
if command -v h5dump >/dev/null; then
  h5dump -H one/train/shard-00000.h5 >header || fail "h5dump does not read the shard"
  grep -q document_offsets header || fail "h5dump shows no document_offsets: $(cat header)"
else
  echo "h5dump (hdf5-tools) is not installed: its part is left out, h5py has read the shards"
fi

# The same shards with that tokenizer, from compressed files, on one thread, and under mpirun.
gzip -k text.jsonl
"$python" -c 'print(end=open("text.jsonl").read())' >copy.jsonl
with=("$scone" tokenize --tokenizer one/tokenizer.model)
again=("${with[@]}" --validation-fraction 0.1)
"${again[@]}" --input text.jsonl.gz --output gz --threads 1 >summary
grep -q "^all .* 400 " summary || fail "no summary of 400 documents: $(cat summary)"
"$mpirun" -np 3 "${again[@]}" --input copy.jsonl --output ranks --threads 3
for other in gz ranks; do diff -r one "$other" || fail "$other differs from one"; done
if command -v zstd >/dev/null; then
  zstd -q text.jsonl
  "${again[@]}" --input text.jsonl.zst --output zst >/dev/null
  diff -r one zst || fail "zst differs from one"
fi
# Small shards hold the same tokens; an earlier run's shards are replaced, and other files stay.
mkdir -p small/train && cp one/train/shard-00000.h5 small/train/shard-00099.h5 && echo old >small/note.txt
"${again[@]}" --input text.jsonl --output small --shard-tokens 2K >/dev/null
[ ! -e small/train/shard-00099.h5 ] && [ -e small/note.txt ] || fail "a shard of an earlier run stayed, or a note went"
"$python" - <<'PYTHON'
import glob, h5py, numpy
read = lambda folder: numpy.concatenate([h5py.File(f, "r")["tokens"][:] for f in sorted(glob.glob(folder + "/train/*.h5"))])
assert len(glob.glob("small/train/*.h5")) > 5
assert (read("small") == read("one")).all()
PYTHON
[ -z "$(ls -A one | grep -v -x -e train -e validation -e tokenizer.model || true)" ] || fail "left over: $(ls -A one)"

# Plain files: a folder, each file one document.
"${again[@]}" --input files --output plain --json >plain.json
"$python" -c '
import json
result = json.loads(open("plain.json").readlines()[-1])
assert result["documents"] == 40 and result["files"] == 40, result
assert result["validation"]["documents"] >= 1 and result["train"]["documents"] >= 1, result'
# No validation, and a single document.
"${with[@]}" --input files --output whole --validation-fraction 0 >/dev/null
[ ! -e whole/validation ] || fail "--validation-fraction 0 left a validation folder"
"${again[@]}" --input files/001.txt --output single >/dev/null 2>err
grep -q "no validation" err || fail "no warning of a missing validation set"

# Invalid UTF-8: replaced and counted, kept byte by byte, or refused.
printf 'good \xff\xfe text\n' >bytes.txt
for policy in replace keep; do
  "${again[@]}" --input bytes.txt --output "$policy" --invalid-utf8 "$policy" --json >policy.json 2>/dev/null
  [ "$(tail -n 1 policy.json | "$python" -c 'import json, sys; print(json.load(sys.stdin)["invalid_sequences"])')" = 2 ] ||
    fail "--invalid-utf8 $policy: expected 2 sequences: $(cat policy.json)"
done
cmp -s replace/train/shard-00000.h5 keep/train/shard-00000.h5 && fail "kept bytes are the same as replaced ones"
bad=("${with[@]}" --output bad)
mends "byte 5" "${bad[@]}" --input bytes.txt --invalid-utf8 error

# Bad input.
: >empty.txt
head -c 2000 /dev/zero >binary.txt
printf '{"text": "a"}\n{"content": "b"}\n' >field.jsonl
head -c 900 text.jsonl.gz >cut.jsonl.gz
mkdir nothing
mends "missing.txt" "${bad[@]}" --input missing.txt
mends "empty.txt" "${bad[@]}" --input text.jsonl empty.txt
mends "NUL" "${bad[@]}" --input text.jsonl binary.txt
mends "field.jsonl:2" "${bad[@]}" --input field.jsonl
mends "cut.jsonl.gz" "${bad[@]}" --input cut.jsonl.gz
mends "nothing" "${bad[@]}" --input nothing
mends "--validation-fraction" "${bad[@]}" --input text.jsonl --validation-fraction 1
mends "--shard-tokens" "${bad[@]}" --input text.jsonl --shard-tokens 0
mends "neither" "$scone" tokenize --input text.jsonl --output bad
mends "both" "${bad[@]}" --input text.jsonl --train-tokenizer 500
mends "no-tokenizer" "$scone" tokenize --input text.jsonl --output bad --tokenizer no-tokenizer
mends "text.jsonl" "$scone" tokenize --input text.jsonl --output bad --tokenizer text.jsonl
mends "1000000" "$scone" tokenize --input files --output bad --train-tokenizer 1M
mends "suffix" "$scone" tokenize --input files --output bad --train-tokenizer 1Q
mends "text.jsonl" "$scone" tokenize --input files --output text.jsonl --tokenizer one/tokenizer.model
mends "empty.txt/bad" "$scone" tokenize --input files --output empty.txt/bad --tokenizer one/tokenizer.model
# What is not of scone tokenize is not replaced, and one that writes is left alone.
stays() {  # stays MESSAGE FOLDER: refused, and the folder is as it was
  local code=0
  cp -r "$2" before
  "${again[@]}" --input files --output "$2" >out 2>err || code=$?
  [ "$code" = 2 ] && grep -q -- "$1" err || fail "expected exit code 2 and '$1', found $code: $(cat err)"
  diff -r "$2" before || fail "a refused run changed $2"
  rm -r before
}
mkdir -p others/train tokens
cp bytes.txt others/train/images.h5
stays "others/train/images.h5 is no token shard, and would be removed" others
echo '{}' >tokens/tokenizer.json
stays "tokens/tokenizer.json is there, but no shards of scone tokenize" tokens
mkdir busy
flock busy/.tokenize.lock sleep 300 &
for _ in $(seq 100); do flock -n busy/.tokenize.lock true || break; sleep 0.05; done
stays "busy: another scone tokenize writes there" busy
kill "$(pgrep -P $! || echo $!)" $! 2>/dev/null || true
mkdir inside
cp one/tokenizer.model inside/
"$scone" tokenize --input files --output inside --tokenizer inside/tokenizer.model >/dev/null
# Ended between the list and its shards, a folder is not taken for whole.
mv inside/train/shard-00000.h5 .
ends 2 'scone: error: inside/train' "$scone" fgrams --data inside/train --output x.h5 --size 10
# A disk that takes no more than 16 KB a file: refused, and an earlier result stays as it was. (mpirun itself, and MPI's
# memory shared between processes, need larger files.)
cat >small_disk <<'SH'
trap '' XFSZ
ulimit -f 16
exec "$@"
SH
small_disk=(mpirun --allow-run-as-root --oversubscribe --bind-to none --mca btl self -np 1 bash small_disk)
mends "space left" "${small_disk[@]}" "${bad[@]}" --input text.jsonl
cp -r one before
code=0
"${small_disk[@]}" "${again[@]}" --input text.jsonl --output one >/dev/null 2>&1 || code=$?
[ "$code" = 2 ] || fail "a full disk: expected exit code 2, found $code"
diff -r one before || fail "a failed run changed an earlier result"
echo "tokenize: h5py reads the shards; same bytes over threads, ranks and compression; bad input is refused"
