"""What this machine can do at this moment: one line in, read bandwidth and GEMM rates out. Runs in this project's interpreter."""

from __future__ import annotations

import json
import sys

import torch
from tokenspeed.runtime.benchmark import machine_rates

_REPEATS = 4


def probe() -> dict[str, float | str]:
    """Bytes per second of the better of a sum and a matrix-vector product over 512 MB; FLOP/s of the better linear layer
    [512 x 4096] x [4096 x 4096] of torch, float32 or bfloat16."""
    read = max(machine_rates.sum_bandwidth(_REPEATS), machine_rates.gemv_bandwidth("f32", _REPEATS)[0])
    gemm = {dtype: machine_rates.gemm_rate(dtype, 2) for dtype in ("f32", "bf16")}
    dtype = max(gemm, key=lambda name: gemm[name][0])
    return {"read_bandwidth": read, "gemm_rate": gemm[dtype][0], "gemm": f"{dtype} {gemm[dtype][1]}"}


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    for _line in sys.stdin:
        sys.stdout.write(json.dumps(probe()) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
