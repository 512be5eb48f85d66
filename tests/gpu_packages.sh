#!/usr/bin/env bash
# Downloads and unpacks what scone and its tests are built from, for a machine where nothing can be installed:
#   tests/gpu_packages.sh FOLDER [--archive FILE.tar.gz]
# FOLDER then serves as -DSCONE_PACKAGES=FOLDER, and may be copied to any machine whose C library is no older than this
# one's (compilers, the C and C++ libraries, CUDA and MPI are not among it). --archive also packs it, as its name says.
# Needs apt-get, apt-cache and dpkg (Debian 12, Ubuntu 22.04 or later), no root.
set -euo pipefail

folder= archive=
while [ $# -gt 0 ]; do
  case $1 in
    --archive)
      archive=$(realpath -m "${2:?gpu_packages.sh: --archive needs a file}")
      shift
      ;;
    -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0" && exit 0 ;;
    -*) echo "gpu_packages.sh: unknown option $1" >&2 && exit 2 ;;
    *) folder=$(realpath -m "$1") ;;
  esac
  shift
done
if [ -z "$folder" ]; then
  echo "gpu_packages.sh: give the folder to unpack into" >&2
  exit 2
fi
if [ -e "$folder" ] && [ -n "$(ls -A "$folder")" ]; then
  echo "gpu_packages.sh: $folder is not empty" >&2
  exit 2
fi

wanted=(libhdf5-dev libyaml-cpp-dev libspdlog-dev libfmt-dev libcli11-dev nlohmann-json3-dev libhwy-dev
  libsentencepiece-dev libpcre2-dev zlib1g-dev libzstd-dev libxxhash-dev liburing-dev libgtest-dev
  libgmock-dev)
boost=$(apt-cache depends libboost-context-dev | sed -n 's/.*Depends: \(libboost-context[0-9.]*-dev\).*/\1/p' | head -n 1)
wanted+=("$boost" "$(sed -E 's/-context([0-9.]+)-dev/\1-dev/' <<<"$boost")")

# What the libraries need when they run, of libraries alone; what a compiler brings is on every machine.
depends() {
  apt-cache depends --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "$1" |
    sed -n 's/^ *|\{0,1\}\(Pre\)\{0,1\}Depends: \([^<]*\)$/\2/p'
}
unwanted='-dev$|^(libc6|libgcc|libstdc|libgomp|libgfortran|libquadmath|libcrypt1|libnss|gcc-|libhdf5-(cpp|fortran|hl)|hdf5-|'
unwanted+='libpcre2-(16|32|posix)|libboost-(serial|thread|system|chrono|atomic|date)|libjpeg|catch2|googletest|debconf|'
unwanted+='libcurl3|libsasl2-modules|krb5-locales|libtirpc|libnsl)'
packages=("${wanted[@]}")
for ((i = 0; i < ${#packages[@]}; ++i)); do
  for needed in $(depends "${packages[i]}"); do
    [[ $needed =~ $unwanted || " ${packages[*]} " == *" $needed "* ]] || packages+=("$needed")
  done
done

mkdir -p "$folder/usr/lib"
folder=$(realpath "$folder")
ln -s usr/lib "$folder/lib"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$work" && apt-get download "${packages[@]}" >download.log 2>&1) || {
  tail -n 5 "$work/download.log" >&2
  echo "gpu_packages.sh: apt-get download failed; a network and a fresh apt-get update are needed" >&2
  exit 1
}
for package in "$work"/*.deb; do dpkg-deb --fsys-tarfile "$package" | tar -x -C "$folder" --keep-directory-symlink; done

# Absolute links (/lib/x86_64-linux-gnu/libz.so.1) lead into the folder.
find "$folder" -type l | while read -r link; do
  target=$(readlink "$link")
  [[ $target == /* && -e $folder$target ]] || continue
  ln -sfr "$folder$target" "$link"
done

# Not needed to build: documents, programs, static libraries beside shared ones, and of Boost all that Boost.Context does not use.
rm -rf "$folder"/usr/share/{doc,man,lintian,bug,locale,info} "$folder"/usr/{bin,sbin} "$folder"/etc "$folder"/var
for library in "$folder"/usr/lib/*/*.a "$folder"/usr/lib/*/hdf5/*/*.a; do
  case $library in
    */libgtest*.a | */libgmock*.a) ;;
    *) rm -f "$library" ;;
  esac
done
includes=$folder/usr/include
if [ -d "$includes/boost" ]; then
  used=$(echo '#include <boost/context/fiber.hpp>
#include <boost/context/fixedsize_stack.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>' | g++ -x c++ -std=c++20 -isystem "$includes" -M - |
    tr ' \\' '\n\n' | sed -n "s|^$includes/||p" | grep '^boost/')
  (cd "$includes" && tar -c $used boost/version.hpp) >"$work/boost.tar"
  rm -rf "$includes/boost"
  tar -x -C "$includes" -f "$work/boost.tar"
  rm -rf "$folder"/usr/lib/*/cmake/[bB]oost*
  # CMake's FindBoost finds it by these headers and the library.
fi

# Every library finds all that it needs there or on any machine with a compiler.
libraries=("$folder"/usr/lib/*/*.so* "$folder"/usr/lib/*/hdf5/*/*.so*)
missing=0
for library in "${libraries[@]}"; do
  if [ ! -e "$library" ]; then
    rm -f "$library"  # a link to what was left out
  elif lost=$(LD_LIBRARY_PATH=$(dirname "${libraries[0]}") ldd "$library" 2>/dev/null | grep 'not found'); then
    echo "gpu_packages.sh: $library: $lost" >&2
    missing=1
  fi
done
[ "$missing" = 0 ] || exit 1
glibc=$(find "$folder" -name '*.so*' -type f -exec objdump -T {} + 2>/dev/null | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
glibcxx=$(find "$folder" -name '*.so*' -type f -exec objdump -T {} + 2>/dev/null | grep -o 'GLIBCXX_[0-9.]*' | sort -uV | tail -n 1)
echo "gpu_packages: ${#packages[@]} packages ($(du -cm "$work"/*.deb | tail -n 1 | cut -f 1) MiB) in $folder," \
  "$(du -sm "$folder" | cut -f 1) MiB; their libraries need $glibc and $glibcxx"
if [ -n "$archive" ]; then
  tar -C "$folder" -caf "$archive" .
  echo "gpu_packages: packed in $archive, $(du -m "$archive" | cut -f 1) MiB"
fi
