#!/usr/bin/env bash
# English text from Debian packages: launch/corpus.sh NAME [NAME..] --output DIR
# NAME: python3.11-doc, perl-doc, dict-gcide, dict-wn, linux-doc-6.1, postgresql-doc-15 or rust-doc.
# Each package is downloaded by apt and unpacked in a temporary folder; nothing is installed. Writes DIR/NAME.jsonl, one
# document a line ({"text": .., "source": ..}), DIR/licences/NAME (the package's copyright file) and DIR/SOURCES.md.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

known=(python3.11-doc perl-doc dict-gcide dict-wn linux-doc-6.1 postgresql-doc-15 rust-doc)
names=() output=
while [ $# -gt 0 ]; do
  case $1 in
    --output)
      output=${2:?corpus.sh: --output needs a folder}
      shift
      ;;
    -h | --help) sed -n '2,5s/^# \{0,1\}//p' "$0" && exit 0 ;;
    *)
      if ! printf '%s\n' "${known[@]}" | grep -xF -- "$1" >/dev/null; then
        echo "corpus.sh: unknown corpus $1; known: ${known[*]}" >&2
        exit 2
      fi
      names+=("$1")
      ;;
  esac
  shift
done
if [ ${#names[@]} = 0 ] || [ -z "$output" ]; then
  echo "usage: corpus.sh NAME [NAME..] --output DIR; names: ${known[*]}" >&2
  exit 2
fi
mkdir -p "$output/licences"
output=$(cd "$output" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"

# The package lists may be missing or old; refreshing them needs root.
download() {
  local name=$1 as_root=()
  apt-get download -o APT::Sandbox::User=root "$name" >apt.log 2>&1 && return
  [ "$(id -u)" = 0 ] || as_root=(sudo)
  "${as_root[@]}" apt-get update >>apt.log 2>&1 || true
  apt-get download -o APT::Sandbox::User=root "$name" >>apt.log 2>&1 && return
  tail -n 20 apt.log >&2
  echo "corpus.sh: apt-get could not download $name; Debian 12's main repository and a network are expected" >&2
  exit 1
}

for name in "${names[@]}"; do
  if [ -s "$output/$name.jsonl" ]; then
    echo "corpus: $output/$name.jsonl is there already"
    continue
  fi
  download "$name"
  package=$(echo "$name"_*.deb)
  version=$(dpkg-deb -f "$package" Version)
  rm -rf tree && mkdir tree
  dpkg-deb -x "$package" tree
  # Where a package's documentation folder is a link to another package's, that package holds the copyright file.
  licence=tree/usr/share/doc/$name/copyright
  if [ -f "$licence" ]; then
    cp "$licence" "$output/licences/$name"
  else
    owner=$(basename "$(readlink "tree/usr/share/doc/$name" || echo "$name")")
    echo "The copyright file of $name $version is in Debian's package $owner." >"$output/licences/$name"
  fi
  python3 "$here/corpus_documents.py" "$name" tree "$output/$name.jsonl"
  # A line of a package that was there before is replaced.
  touch "$output/SOURCES.md"
  {
    grep -q '^| package' "$output/SOURCES.md" || printf '# Sources\n\nText taken out of Debian packages.\n\n'
    grep -vF "| $name |" "$output/SOURCES.md" || true
    grep -q '^| package' "$output/SOURCES.md" || printf '| package | version | file | licence |\n|---|---|---|---|\n'
    echo "| $name | $version | $name.jsonl | licences/$name |"
  } >"$output/SOURCES.md.partial"
  mv "$output/SOURCES.md.partial" "$output/SOURCES.md"
  rm -rf tree "$package"
done
