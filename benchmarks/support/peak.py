"""The processor's peak in float32, by a loop of independent fused multiply-adds: the yardstick of the kernels."""

import ctypes
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

SOURCE = """
typedef float V __attribute__((vector_size(BYTES)));

extern "C" float loop(long n) {
    V sum[SUMS], x = V{} + 0.999999f, y = V{} + 1e-6f;
    for (int i = 0; i < SUMS; ++i) sum[i] = V{} + float(i);
    for (long k = 0; k < n; ++k)
_Pragma("GCC unroll 24")
        for (int i = 0; i < SUMS; ++i) sum[i] = sum[i] * x + y;
    V all = {};
    for (int i = 0; i < SUMS; ++i) all += sum[i];
    return all[0];
}
"""
LOOPS, SAMPLES = 400_000, 20
MISSING = "No peak: it needs a C++ compiler (g++ or clang++), and there is none."


def loop() -> tuple[Callable[[int], float], int] | None:
    """The compiled loop and the multiply-adds of a round of it, in float32; None without a compiler."""
    compiler = next((c for c in (os.environ.get("CXX"), "c++", "g++", "clang++") if c and shutil.which(c)), None)
    if compiler is None:
        return None
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    size = 64 if "avx512f" in flags else 32 if "avx2" in flags else 16
    sums = 24 if size == 64 else 12  # more than latency times units, and they fit into the registers, 32 or 16
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "peak.cpp", Path(folder) / "peak.so"
        source.write_text(SOURCE)
        command = [
            compiler,
            "-O3",
            "-march=native",
            "-ffp-contract=fast",
            "-funroll-loops",
            f"-DBYTES={size}",
            f"-DSUMS={sums}",
        ]
        done = subprocess.run([*command, "-shared", "-fPIC", str(source), "-o", str(library)], check=False)
        if done.returncode:
            return None
        function = ctypes.CDLL(str(library)).loop
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_long]
    return function, sums * size // 4


def gflops(threads: int) -> float | None:
    """10^9 multiplications and additions per second on so many threads at once; None without a compiler."""
    found = loop()
    if found is None:
        return None
    function, round_ = found
    best = float("inf")
    for _ in range(SAMPLES):
        workers = [threading.Thread(target=function, args=(LOOPS,)) for _ in range(threads)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = min(best, time.perf_counter() - start)
    return 2e-9 * round_ * LOOPS * threads / best
