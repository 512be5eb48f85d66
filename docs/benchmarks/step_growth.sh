#!/usr/bin/env bash
# Speed of a training step on this processor over widths and contexts, in fp32 and bf16: a table, and a plot of the share of
# the measured matrix peak.
#   docs/benchmarks/step_growth.sh SCONE FOLDER
# writes FOLDER/step_growth.txt and FOLDER/step_growth.svg.
set -euo pipefail
[ $# = 2 ] || { echo "usage: $0 SCONE FOLDER" >&2 && exit 2; }
scone=$1 folder=$2
mkdir -p "$folder"
table=$folder/step_growth.txt

# measure DTYPE WIDTH CONTEXT: tokens/s and share of peak of 4 layers of GPT-2's form, 2048 or 4096 tokens a step.
measure() {
  local tokens=$(($3 > 2048 ? $3 : 2048))
  "$scone" bench --json step --shapes gpt2-124m --layers 4 --dtype "$1" --width "$2" --context "$3" --batch-tokens $tokens \
    --microbatch-tokens $tokens --rounds 3 |
    tail -n 1 |
    python3 -c "import json, sys; row = json.load(sys.stdin)['rows'][0]; print(f\"$1 $2 $3 {row['tokens_per_second']:.0f} {100 * row['peak_share']:.1f}\")"
}

{
  echo "# dtype width context tokens/s share-of-peak-%"
  for dtype in fp32 bf16; do
    for width in 128 256 384 512 768 1024 1536; do measure $dtype $width 256; done
    for context in 128 512 1024 2048 4096; do measure $dtype 512 $context; done
  done
} | tee "$table"

gnuplot <<PLOT
set terminal svg size 900,360
set output "$folder/step_growth.svg"
set multiplot layout 1,2
set yrange [0:100]
set ylabel "% of the matrix peak"
set logscale x 2
set key bottom right
set xlabel "width (context 256)"
plot "<grep '^fp32 .* 256 ' $table" using 2:5 with linespoints title "fp32", "<grep '^bf16 .* 256 ' $table" using 2:5 with linespoints title "bf16"
set xlabel "context (width 512)"
plot "<grep '^fp32 512 ' $table | sort -n -k 3" using 3:5 with linespoints title "fp32", "<grep '^bf16 512 ' $table | sort -n -k 3" using 3:5 with linespoints title "bf16"
PLOT
