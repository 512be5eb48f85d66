"""What makes Debian's PyTorch as fast as it can be on a processor, for the peers in this folder."""
import os
import re
import sys

# The allocator and OpenBLAS read these as the process starts. Tensors of each step stay in the heap, which otherwise
# gives every one back to the system and takes page faults for the next.
FASTEST = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "16000000000"}
SLOWER = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # choose kernels of another processor


def restart_at_its_best():
    """Runs this script again with the fastest environment, where it is not started so. Call before importing torch."""
    if all(os.environ.get(key) == value for key, value in FASTEST.items()) and not any(key in os.environ for key in SLOWER):
        return
    kept = {key: value for key, value in os.environ.items() if key not in SLOWER}
    dropped = [f"{key}={os.environ[key]}" for key in SLOWER if key in os.environ]
    if dropped:
        print(f"{os.path.basename(sys.argv[0])}: without {' '.join(dropped)}", file=sys.stderr)
    os.execve(sys.executable, [sys.executable, *sys.argv], {**kept, **FASTEST})


def blas_libraries():
    """Files of the matrix libraries that this process has loaded."""
    with open("/proc/self/maps") as maps:
        paths = {line.split(maxsplit=5)[5].strip() for line in maps if line.count("/")}
    return sorted(path for path in paths if re.search(r"/(lib)?[^/]*(blas|blis|mkl|atlas)[^/]*\.so", path))


def refuse_reference_blas():
    """Ends the script where PyTorch multiplies with Netlib's reference BLAS, a hundred times slower than the processor
    can, which Debian's has where no other is installed. Says on stderr what it runs on."""
    import torch

    name = os.path.basename(sys.argv[0])
    torch.ones(64, 64) @ torch.ones(64, 64)
    libraries = blas_libraries()
    # PyTorch calls libblas.so.3 where it is linked with it; Debian's alternatives say whose that is.
    slow = [path for path in libraries if os.path.basename(path).startswith("libblas.")
            and not re.search("openblas|blis|mkl|atlas", path)]
    if slow or not libraries and "mkl" not in torch.__config__.show().lower():
        sys.exit(f"{name}: expected PyTorch with an optimised BLAS, found {', '.join(slow) or 'none'}, Netlib's "
                 "reference BLAS; apt-get install libopenblas0-openmp")
    print(f"{name}: PyTorch {torch.__version__}, {torch.get_num_threads()} threads, {', '.join(libraries) or 'MKL'}",
          file=sys.stderr)
