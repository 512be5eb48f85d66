#!/usr/bin/env bash
# A folder includes only the folders below it in the README's table; the checker itself is tested on planted violations.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

declare -A allowed=(
  [parallel]="parallel"
  [model]="model parallel"
  [data]="data parallel"
  [checkpoint]="checkpoint model data parallel"
  [trainer]="trainer checkpoint model data parallel"
  [launch]="launch trainer checkpoint model data parallel"
)

# check ROOT: prints each include that the rule forbids, as FILE:LINE: text; fails where there is one. Quoted includes
# are ours and are written from the root; one in angle brackets must not name a folder of ours.
check() {
  local root=$1 bad=0 folder file line text target
  for folder in "${!allowed[@]}"; do
    [ -d "$root/$folder" ] || continue
    while IFS=: read -r file line text; do
      [ -n "$file" ] || continue
      target=$(sed -E 's/^[[:space:]]*#[[:space:]]*include[[:space:]]*["<]([^">]*)[">].*/\1/' <<<"$text")
      case $text in
        *\"*)
          if [[ " ${allowed[$folder]} " != *" ${target%%/*} "* ]] || [ ! -f "$root/$target" ]; then
            echo "$file:$line: ${text}   ($folder/ may include: ${allowed[$folder]}; by paths from the root)"
            bad=1
          fi
          ;;
        *)
          if [[ $target == */* && -n ${allowed[${target%%/*}]:-} && -f $root/$target ]]; then
            echo "$file:$line: ${text}   (our own headers are included in quotes)"
            bad=1
          fi
          ;;
      esac
    done < <(grep -rnE '^[[:space:]]*#[[:space:]]*include' "$root/$folder" --include='*.h' --include='*.cpp' --include='*.cu' \
      --include='*.cuh' || true)
  done
  return $bad
}

planted=$(mktemp -d)
trap 'rm -rf "$planted"' EXIT
mkdir "$planted"/{parallel,model,data,checkpoint,trainer,launch}
for folder in "${!allowed[@]}"; do echo '#pragma once' >"$planted/$folder/own.h"; done
cases=0
for folder in "${!allowed[@]}"; do
  for target in "${!allowed[@]}"; do
    echo "  #  include \"$target/own.h\"" >"$planted/$folder/planted.cpp"
    expected=refused found=passed
    [[ " ${allowed[$folder]} " == *" $target "* ]] && expected=passed
    check "$planted" >"$planted/output" || found=refused
    if [ "$found" != "$expected" ]; then
      echo "checker: $folder including $target: expected $expected, found $found"
      exit 1
    fi
    if [ "$found" = refused ] && ! grep -q "$folder/planted.cpp:1:" "$planted/output"; then
      echo "checker: $folder including $target: the message does not name the line: $(cat "$planted/output")"
      exit 1
    fi
    rm "$planted/$folder/planted.cpp"
    cases=$((cases + 1))
  done
done
for text in '#include <model/own.h>' '#include "own.h"' '#include "../model/own.h"'; do
  echo "$text" >"$planted/data/planted.h"
  if check "$planted" >/dev/null; then
    echo "checker: passed $text in data/"
    exit 1
  fi
done

if ! check "$repository"; then exit 1; fi
files=$(find "$repository"/{parallel,model,data,checkpoint,trainer,launch} -name '*.h' -o -name '*.cpp' | wc -l)
[ "$files" -gt 20 ] || { echo "only $files sources were found below $repository"; exit 1; }
echo "include rule: $files sources keep it; the checker was right on $cases planted includes"
