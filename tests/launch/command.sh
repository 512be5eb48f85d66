# shellcheck shell=bash disable=SC2034
# What the tests of commands share; sourced by them, with their arguments. From then on the working folder is one of the test's own,
# $folder, which goes when the test ends. Sets $scone (the first argument), $tests, $repository and $mpirun; a process has one thread.
tests=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$tests/../.." && pwd)
mpirun=$repository/launch/mpirun.sh
scone=$(realpath "${1:?$(basename "$0"): give the path of scone}")
folder=$(realpath "$(mktemp -d)")
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit
export OMP_NUM_THREADS=1

fail() {
  echo "$(basename "$0" .sh): $*"
  exit 1
}

# ends CODE TEXT COMMAND..: the command ends so within four minutes, and TEXT, an extended regular expression, is in `out`, what it
# printed.
ends() {
  local expected=$1 text=$2 code=0
  shift 2
  timeout --kill-after=5 240 "$@" >out 2>&1 || code=$?
  if [ "$code" != "$expected" ] || ! grep -qE -- "$text" out; then
    fail "$* ended with $code (expected $expected), without '$text' (or with it):"$'\n'"$(cat out)"
  fi
}

# processes PATTERN: the numbers of those whose command line matches, and that work in this test's folder or below it.
processes() {
  local id
  for id in $(pgrep -f -- "$1"); do
    case $(readlink "/proc/$id/cwd") in "$folder" | "$folder"/*) echo "$id" ;; esac
  done
}

# documents SEED NUMBER WORDS [MORE]: JSON lines of so many words each, of fourteen words and those in MORE, the first ones most often.
documents() {
  awk -v seed="$1" -v documents="$2" -v words="$3" -v more="${4:-}" 'BEGIN {
    srand(seed)
    n = split("the of a model token corpus rank frequent gram table row page vector layer " more, word, " ")
    for (d = 0; d < documents; ++d) {
      line = ""
      for (i = 0; i < words; ++i) line = line word[1 + int(rand() * rand() * n)] " "
      printf "{\"text\": \"%s\"}\n", line
    }
  }'
}

# Sets $python to one that has h5py and numpy, as Debian's own, behind which another may stand in PATH.
find_python() {
  python=python3
  "$python" -c 'import h5py' 2>/dev/null || python=/usr/bin/python3
}
