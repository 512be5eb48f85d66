#!/usr/bin/env bash
# Installs what is missing of Debian 12's packages and builds build/scone.
#   launch/setup.sh [--tests] [--reference]
# --tests      also what the tests need, and the tests themselves
# --reference  also Debian's PyTorch, and the ctest test that compares with it (implies --tests)
# The build's output is in build/build.log. apt runs only where a package is missing, through sudo where not root.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repository"

tests=OFF reference=OFF
for argument in "$@"; do
  case $argument in
    --tests) tests=ON ;;
    --reference) tests=ON reference=ON ;;
    -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0" && exit 0 ;;
    *)
      echo "setup.sh: unknown argument $argument; expected --tests or --reference" >&2
      exit 2
      ;;
  esac
done

packages=(g++ cmake ninja-build pkg-config libopenmpi-dev openmpi-bin libhdf5-dev libyaml-cpp-dev libspdlog-dev libfmt-dev
  libcli11-dev nlohmann-json3-dev libhwy-dev libsentencepiece-dev libpcre2-dev zlib1g-dev libzstd-dev libxxhash-dev liburing-dev
  gnuplot-nox python3)
[ "$tests" = ON ] && packages+=(libgtest-dev libgmock-dev libboost-context-dev clang-format-14 python3-h5py python3-numpy hdf5-tools zstd procps chromium slurm-wlm munge)
if [ "$tests" = ON ]; then  # GPT-2's ids are compared with a tokenizer from npm
  command -v node >/dev/null || packages+=(nodejs)
  command -v npm >/dev/null || packages+=(npm)
fi
[ "$reference" = ON ] && packages+=(python3-torch libopenblas0-openmp)

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "setup: installing ${missing[*]}"
  as_root=()
  if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
      echo "setup.sh: not root and there is no sudo; run as root: apt-get install ${missing[*]}" >&2
      exit 1
    fi
    as_root=(sudo)
  fi
  apt_log=$(mktemp)
  if ! { "${as_root[@]}" apt-get update &&
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } \
    >"$apt_log" 2>&1; then
    tail -n 30 "$apt_log" >&2
    echo "setup.sh: apt-get failed (its whole output: $apt_log); Debian 12 is expected, with a network" >&2
    exit 1
  fi
  rm -f "$apt_log"
fi

# Without --tests, a build folder that has the tests keeps them.
configure=(cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release)
if [ "$tests" = ON ]; then
  configure+=(-DSCONE_TESTS=ON -DSCONE_REFERENCE="$reference")
elif [ ! -f build/CMakeCache.txt ]; then
  configure+=(-DSCONE_TESTS=OFF)
fi
command -v ccache >/dev/null && configure+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
targets=(scone)
[ "$tests" = ON ] && targets=(all)
mkdir -p build
begin=$SECONDS
echo "setup: building build/scone$([ "$tests" = ON ] && echo " and the tests") (log: build/build.log)"
if ! { "${configure[@]}" && cmake --build build --target "${targets[@]}"; } >build/build.log 2>&1; then
  grep -n -A 8 -E 'error|CMake Error|FAILED' build/build.log | head -n 60 >&2 || true
  echo "setup.sh: the build failed; all of its output is in $repository/build/build.log" >&2
  exit 1
fi
echo "setup: done in $((SECONDS - begin)) s"
