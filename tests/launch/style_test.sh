#!/usr/bin/env bash
# Every source is formatted as clang-format 14 formats it, no source is over 500 lines, and no two headers of the program define
# types of one name, which would be one and the same to the linker.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
formatter=$(command -v clang-format-14 || true)
if [ -z "$formatter" ]; then
  echo "clang-format-14 is not installed; launch/setup.sh --tests installs it"
  exit 1
fi
mapfile -t sources < <(find parallel model data checkpoint trainer launch tests \
  \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) | sort)
[ ${#sources[@]} -gt 20 ] || { echo "only ${#sources[@]} sources were found in $PWD"; exit 1; }

# The check can fail: a badly formatted file is refused.
if echo 'int  main( ){return 0 ;}' | "$formatter" --style=file --assume-filename=model/planted.cpp --dry-run -Werror 2>/dev/null; then
  echo "clang-format passed a badly formatted line"
  exit 1
fi

bad=0
for source in "${sources[@]}"; do
  if ! "$formatter" --style=file --dry-run -Werror "$source" 2>/dev/null; then
    echo "$source: not formatted; run: clang-format-14 -i $source"
    bad=1
  fi
  lines=$(wc -l <"$source")
  if [ "$lines" -gt 500 ]; then
    echo "$source: $lines lines, at most 500 are wanted"
    bad=1
  fi
done
twice=$(find parallel model data checkpoint trainer launch -name '*.h' -exec grep -ohE '^(struct|class) \w+ (final )?[:{]' {} + |
  awk '{ print $2 }' | sort | uniq -d)
[ -z "$twice" ] || { echo "defined in several headers: $twice"; bad=1; }
[ $bad = 0 ] || exit 1
echo "style: ${#sources[@]} sources are formatted, none over 500 lines, no type of two headers has one name"
