#!/usr/bin/env bash
# Puts what `scone bench data --text .. --tokenizer DIR/tokenizer.json --peers DIR` compares with into DIR: npm builds of tiktoken and
# of Hugging Face's tokenizers, and GPT-2's tokenizer.json. Needs node, npm and its registry: tokenizer_peers.sh DIR
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "${1:?usage: tokenizer_peers.sh DIR}"
cd "$1"
[ -f package.json ] || echo '{"private": true}' >package.json
npm install --no-audit --no-fund --save-exact js-tiktoken@1.0.21 tiktoken@1.0.22 @anush008/tokenizers@0.6.0
node "$here/../tests/launch/gpt2_ids_test.mjs" "$PWD"
