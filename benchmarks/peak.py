"""How fast could the processor multiply and add in float32, and how much of that does torch.mm reach?

The peak is that of a loop of independent fused multiply-adds in registers, compiled on the spot, on one thread and on
all of torch's threads at once: nothing can be faster, and no matrix library is involved.

    python benchmarks/peak.py [--quick]

No target: it is the yardstick of `benchmarks/layers.py`.
"""

import sys

import torch
from support.interleave import options
from support.peak import MISSING, gflops

from support import report, seconds

SIDE, SAMPLES = 2048, 7


def main() -> int:
    args = options(__doc__, "peak").parse_args()
    side = 256 if args.quick else SIDE
    a, b, out = torch.randn(side, side), torch.randn(side, side), torch.empty(side, side)
    all_threads, rows = torch.get_num_threads(), []
    for threads in sorted({1, all_threads}):
        peak = gflops(threads)
        torch.set_num_threads(threads)
        best = min(seconds(lambda: torch.mm(a, b, out=out)) for _ in range(SAMPLES))
        rate = 2e-9 * side**3 / best
        rows.append(
            [
                threads,
                "-" if peak is None else f"{peak:.0f}",
                f"{rate:.0f}",
                "-" if peak is None else f"{rate / peak:.2f}",
            ]
        )
    torch.set_num_threads(all_threads)
    status = report(
        "peak_quick" if args.quick else "peak",
        ["threads", "peak, GFLOP/s", f"torch.mm {side}³, GFLOP/s", "of the peak"],
        rows, [], args.json, judged=False,
    )  # fmt: skip
    if any("-" in row for row in rows):
        print(MISSING)
    return status


if __name__ == "__main__":
    sys.exit(main())
