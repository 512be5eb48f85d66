# Toolchain file for arm64: Debian's g++-aarch64-linux-gnu, with libraries from -DCMAKE_SYSROOT, a folder of unpacked
# packages of that architecture. Programs run by qemu where it is found.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
# This machine's mpicc would name its own architecture's libraries; pkg-config names those of the other.
set(MPI_SKIP_COMPILER_WRAPPER ON)
set(ENV{PKG_CONFIG_LIBDIR} ${CMAKE_SYSROOT}/usr/lib/aarch64-linux-gnu/pkgconfig:${CMAKE_SYSROOT}/usr/share/pkgconfig)
set(ENV{PKG_CONFIG_SYSROOT_DIR} ${CMAKE_SYSROOT})
find_program(SCONE_QEMU NAMES qemu-aarch64 qemu-aarch64-static)
if(SCONE_QEMU)
  set(CMAKE_CROSSCOMPILING_EMULATOR ${SCONE_QEMU} -L ${CMAKE_SYSROOT})
endif()
