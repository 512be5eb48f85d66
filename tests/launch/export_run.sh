# Sourced by tests of export, after command.sh: trains a small run, exports it and evaluates it, in the working folder.
# run_and_export NAME [key=value ..]: run NAME, its export NAME.export, its evaluation NAME.json.
scone_keys=(fgrams.vocabulary=fgrams.h5 model.fgram.layers=1)

prepare_export_data() {
  documents 11 200 60 >text.jsonl
  "$scone" tokenize --input text.jsonl --output shards --train-tokenizer 300 --validation-fraction 0.1
  "$scone" fgrams --data shards/train --output fgrams.h5 --size 300 --min-count 5
  cat >run.yaml <<'YAML'
run: {folder: run}
data: {train: shards/train, validation: shards/validation}
model:
  main: {width: 32, layers: 2, heads: 2, context: 64}
  fgram: {chunk_nodes: 64}
optimizer: {peak_lr: 5.0e-3, warmup_steps: 3}
trainer: {steps: 20, batch_tokens: 512, eval_every: 20}
compute: {threads: 1}
YAML
}

run_and_export() {
  local name=$1
  shift
  "$scone" train run.yaml "run.folder=$name" "$@"
  "$scone" export "$name" --format safetensors --out "$name.export"
  "$scone" eval "$name" --data shards/validation --json | tail -n 1 >"$name.json"
}
