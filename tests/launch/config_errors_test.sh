#!/usr/bin/env bash
# Run configurations and command lines as a user meets them: exit codes and messages, alone and on several ranks.
# config_errors_test.sh SCONE
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
configs=$repository/configs

fail() {
  echo "config_errors_test: $*"
  echo "stdout:" && cat out
  echo "stderr:" && cat err
  exit 1
}

# ends CODE MESSAGE COMMAND..: the exit code must be CODE and stderr must hold MESSAGE.
ends() {
  local expected=$1 message=$2 code=0
  shift 2
  timeout 60 "$@" >out 2>err || code=$?
  [ "$code" = "$expected" ] || fail "expected exit code $expected, found $code from: $*"
  [ -z "$message" ] || grep -qF -- "$message" err || fail "expected '$message' from: $*"
}

cat >good.yaml <<'YAML'
run:
  folder: run
data:
  train: shards
model:
  main:
    width: 64
    layers: 2
    heads: 4
    context: 128
trainer:
  steps: 10
  batch_tokens: 2Ki
YAML

# A good file: the printed configuration, read back, prints itself.
ends 0 "" "$scone" train good.yaml --print-config trainer.steps=12
grep -q '^  steps: 12 ' out || fail "the override is not in the printed configuration"
cp out printed.yaml
ends 0 "" "$scone" train printed.yaml --print-config
cmp -s out printed.yaml || fail "the printed configuration does not print itself"
ends 0 "" "$mpirun" -np 2 "$scone" train good.yaml --print-config trainer.steps=12
[ "$(grep -c '^run:' out)" = 1 ] || fail "expected one configuration from two ranks"
[ ! -e run ] || fail "--print-config made the run's folder"
for file in "$configs"/*.yaml; do
  grep -q 'Every key is here' "$file" || continue
  # As often as there are sections with such a key.
  while read -r times key; do
    [ "$(grep -ow "$key:" "$file" | wc -l)" -ge "$times" ] || fail "$file says that every key is in it, but not in $times places $key"
  done < <(sed -n 's/^ *\([a-z_]*\):.*/\1/p' printed.yaml | sort | uniq -c)
done

# Bad files.
sed 's/width: 64/width: abc/' good.yaml >type.yaml
ends 2 "scone: error: type.yaml:7: model.main.width: expected an integer, found 'abc'" "$scone" train type.yaml
sed 's/heads: 4/haeds: 4/' good.yaml >unknown.yaml
ends 2 "unknown.yaml:9: model.main.haeds: unknown key; the nearest valid key is model.main.heads" \
  "$scone" train unknown.yaml
sed 's/heads: 4/heads: 7/' good.yaml >heads.yaml
ends 2 "heads.yaml:9: model.main.heads: 7 heads do not divide" "$scone" train heads.yaml
sed 's/  steps: 10/  steps: 10\n  steps: 11/' good.yaml >twice.yaml
ends 2 "twice.yaml:13: trainer.steps: given twice, first in line 12" "$scone" train twice.yaml
sed '/batch_tokens/d' good.yaml >missing.yaml
ends 2 "missing.yaml: required keys are missing: trainer.batch_tokens" "$scone" train missing.yaml
printf 'run: [\n' >broken.yaml
ends 2 "broken.yaml:" "$scone" train broken.yaml
ends 2 "absent.yaml: cannot be read" "$scone" train absent.yaml
# Of a build without CUDA, or with it where there is no device.
command -v nvidia-smi >/dev/null || ends 2 "compute.device" "$scone" train good.yaml compute.device=cuda
ends 2 "model.main.layers: expected at most" "$scone" train good.yaml model.main.layers=1T
ends 2 "model.main.width: expected at most" "$scone" train good.yaml model.main.width=1T
ends 2 "compute.threads: expected at most" "$scone" train good.yaml compute.threads=1M
echo text >text.txt
ends 2 "--threads: expected 1.." "$scone" tokenize --input text.txt --output bad --train-tokenizer 300 --threads 1000000
[ ! -e run ] || fail "a bad configuration left the run's folder"

# On several ranks: one message for what all ranks find, and the failing rank's where one alone does.
ends 2 "scone: error: type.yaml:7: model.main.width" "$mpirun" -np 3 "$scone" train type.yaml
[ "$(grep -c 'expected an integer' err)" = 1 ] || fail "expected the message once from three ranks"
ends 2 "1 sequences of 128 for 2 data-parallel ranks" "$mpirun" -np 2 "$scone" train good.yaml trainer.batch_tokens=128
ends 2 "scone: error: --input absent.txt" "$mpirun" -np 2 "$scone" tokenize --input absent.txt --output bad \
  --train-tokenizer 1K
[ "$(grep -c 'absent.txt' err)" = 1 ] || fail "expected the message once from two ranks"
ends 2 "scone: error: [rank 0 of 2, " "$mpirun" -np 2 "$scone" inspect absent.txt
grep -q 'absent.txt' err || fail "expected the file's name in the failing rank's message"

# The command line itself.
ends 2 "" "$scone" train
ends 2 "scone: unknown command 'trian'; expected one of tokenize, fgrams, train," "$scone" trian good.yaml
ends 2 "bench: unknown command 'tabel'; expected one of bake," "$scone" bench tabel
ends 2 "A subcommand is required" "$scone"
for command in "$mpirun -np 2 $scone" "$scone"; do
  ends 2 "unknown command 'trian'" $command trian
  [ "$(grep -c trian err)" = 1 ] || fail "expected the message once"
done

# Numbers of options, and the result's file: what is no file is never replaced.
ends 2 "--train-tokenizer: size '-5': expected a whole number" "$scone" tokenize --input text.txt --output bad --train-tokenizer -5
ends 2 "--train-tokenizer: expected a size of at most 2147483647, found 100000000000" \
  "$scone" tokenize --input text.txt --output bad --train-tokenizer 100G
ends 2 "--batch: expected a whole number of at least 1, found 0" "$scone" generate absent --prompt a --batch 0
ends 2 "--max-tokens: expected a whole number of at least 0, found -1" "$scone" generate absent --prompt a --max-tokens -1
ends 2 "--microbatch-sequences: Value 100000 not in range 1 to 64" "$scone" eval absent --data absent --microbatch-sequences 100000
ends 2 "--batch-tokens: expected at least 1" "$scone" fgrams --data absent --output bad.h5 --size 1K --report --batch-tokens 0
ends 2 "--batches: expected a whole number of at least 1" "$scone" bench table absent --data absent --batches 0
ends 2 "--context: expected a whole number of at least 1" "$scone" bench step --context -5
ends 2 "--size 1000T: a rank takes" "$scone" bench checkpoint --size 1000T
mkfifo pipe
ends 2 "--result pipe: expected the name of a file, found a device or a pipe" "$scone" inspect text.txt --result pipe
[ -p pipe ] || fail "--result replaced a pipe"
ends 2 "--result .: expected the name of a file, found a folder" "$mpirun" -np 2 "$scone" inspect text.txt --result .
[ "$(grep -c 'found a folder' err)" = 1 ] || fail "expected the message once from two ranks"
echo old >result.json
ln -s result.json link.json
ends 0 "" "$scone" plan good.yaml --ranks 1 --device h100 --vocabulary-size 300 --result link.json \
  compute.device=cuda compute.dtype=bf16
[ -L link.json ] && grep -q '"ranks"' result.json || fail "--result did not write the file behind the link: $(ls -l; cat result.json)"
for command in "export absent --format safetensors" "import absent" "bake absent" "bundle convert absent"; do
  ends 2 "--out: expected the name of a folder, found an empty one" "$scone" $command --out ""
done
[ ! -e checkpoints ] || fail "an empty --out wrote into the working folder"
ends 0 "" "$scone" --help
grep -q 'tokenize' out || fail "expected the subcommands in --help"
for command in tokenize fgrams train eval bake generate inspect sweep; do
  ends 0 "" "$scone" "$command" --help
  grep -q -- '--json' out || fail "expected --json in $command --help"
done
ends 0 "" "$mpirun" -np 2 "$scone" --help
[ "$(grep -c 'Usage:' out)" = 1 ] || fail "expected the help once from two ranks"
echo "config_errors_test: passed"
