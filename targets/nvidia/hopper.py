"""H100 and H200 (compute capability 9.0): one processor, two memories."""

from __future__ import annotations

from ..accelerator import accelerator
from ..rates import KIB, MIB, measured, nominal

_H100 = "NVIDIA H100 Tensor Core GPU data sheet, H100 SXM"
_H200 = "NVIDIA H200 Tensor Core GPU data sheet, H200 SXM"
_PAPER = "NVIDIA H100 Tensor Core GPU Architecture, white paper V1.04, H100 SXM5"
_CAPABILITY = "CUDA C++ Programming Guide, technical specifications per compute capability, 9.0"
_ON_H100 = "one H100 80GB HBM3, torch 2.11, driver 580, 2026-11"
_ON_H200 = "one H200, torch 2.11, driver 580, 2026-11"

_ON_TWO_H200 = "two H200 over NVLink without multicast, driver 580, NCCL 2.28.9, captured graphs, 2026-11-29"
_FIT = f"fit over 4 KiB to 128 MiB, in bytes that a rank sends; {_ON_TWO_H200}"
_EXCHANGE = f"set: up to here and beyond faster than NCCL's sum; {_ON_TWO_H200}"

_STEPS = "fit to 74 steps of an 8B model in bfloat16, benchmarks/fit_step_costs.py; two H200, one after the other, 2026-11-29"

_LIBRARY = (
    ("all_reduce", 10.3e-6, 255e9),
    ("all_gather", 9.4e-6, 200e9),
    ("reduce_scatter", 9.0e-6, 198e9),
    ("all_to_all", 10.7e-6, 233e9),
)
"""NCCL's collectives: seconds of the smallest message, bytes per second."""

_ARCH = "sm_90a"
_INSTRUCTIONS = "mma cp.async wgmma tma cluster programmatic-launch fp8-e4m3 fp8-e5m2"

_RATES = {
    "compute.f32": nominal(66.9e12, "FLOP/s", f"{_PAPER}, FP32"),
    "compute.bf16": nominal(989.4e12, "FLOP/s", f"{_PAPER}, BF16 tensor core, dense"),
    "compute.f16": nominal(989.4e12, "FLOP/s", f"{_PAPER}, FP16 tensor core, dense"),
    "compute.fp8": nominal(1978.9e12, "FLOP/s", f"{_PAPER}, FP8 tensor core, dense"),
    "compute.int8": nominal(1978.9e12, "OP/s", f"{_PAPER}, INT8 tensor core, dense"),
    "link.peer": nominal(450e9, "B/s", f"{_H100}, NVLink 900 GB/s in both directions together"),
    "link.host": nominal(64e9, "B/s", f"{_H100}, PCIe Gen5 128 GB/s in both directions together"),
}
_SIZES = {
    "units": nominal(132, "1", f"{_PAPER}, multiprocessors"),
    "shared.unit": nominal(228 * KIB, "B", _CAPABILITY),
    "shared.block": nominal(227 * KIB, "B", _CAPABILITY),
    "registers.unit": nominal(65536, "1", _CAPABILITY),
    "registers.thread": nominal(255, "1", _CAPABILITY),
    "warp": nominal(32, "1", _CAPABILITY),
}

HOPPER = (
    accelerator(
        "h100",
        "NVIDIA H100 80GB SXM5",
        kind="cuda",
        arch=_ARCH,
        instructions=_INSTRUCTIONS,
        rates=_RATES | {"bandwidth": nominal(3.35e12, "B/s", f"{_H100}, GPU memory bandwidth")},
        measured={
            "compute.bf16": measured(798e12, "FLOP/s", f"cuBLAS, 8192 x 8192 x 8192, random data; {_ON_H100}"),
            "bandwidth": measured(3.0e12, "B/s", f"copy on the device, bytes read and written; {_ON_H100}"),
        },
        sizes=_SIZES
        | {
            "memory": nominal(80e9, "B", f"{_H100}, 80 GB HBM3"),
            "cache.l2": nominal(50 * MIB, "B", f"{_PAPER}, 50 MB"),
        },
    ),
    accelerator(
        "h200",
        "NVIDIA H200 141GB SXM5",
        kind="cuda",
        arch=_ARCH,
        instructions=_INSTRUCTIONS,
        state="ran on hardware",
        rates=_RATES
        | {
            "bandwidth": nominal(4.8e12, "B/s", f"{_H200}, GPU memory bandwidth"),
        },
        measured={
            "compute.bf16": measured(790e12, "FLOP/s", f"cuBLAS, products of the 4096 and 8192 classes; {_ON_H200}"),
            "bandwidth": measured(4.3e12, "B/s", f"copy on the device, bytes read and written; {_ON_H200}"),
            "link.host": measured(
                50e9, "B/s", f"page-locked memory, 1 GiB to the device 50.6, back 55.3, both at once 41.8; {_ON_H200}"
            ),
            "latency.exchange": measured(3.3e-6, "s", f"a row of 4096, with residual and norm; {_ON_TWO_H200}"),
            "link.exchange": measured(240e9, "B/s", f"512 rows of 4096 in 20.8 us; {_ON_TWO_H200}"),
            **{
                rate: measured(value, unit, _FIT)
                for collective, latency, bandwidth in _LIBRARY
                for rate, value, unit in ((f"latency.{collective}", latency, "s"), (f"link.{collective}", bandwidth, "B/s"))
            },
            "products.share": measured(0.882, "1", _STEPS),
            "experts.share": measured(0.28, "1", f"prompts of 8192 tokens, Qwen3 30B A3B in bfloat16; {_ON_TWO_H200}"),
            "products.overlap": measured(1.187, "1", _STEPS),
            "attention.compute": measured(813e12, "FLOP/s", _STEPS),
            "attention.cut": measured(0.761, "1", _STEPS),
            "dispatch": measured(4.7e-6, "s", f"prepared launch through the CUDA driver, host's time; {_ON_H200}"),
        },
        sizes=_SIZES
        | {
            "memory": nominal(141e9, "B", f"{_H200}, 141 GB HBM3e"),
            "cache.l2": measured(60 * MIB, "B", f"as the driver reports it; {_ON_H200}"),
            "link.devices": nominal(8, "1", f"{_H200}, HGX H200 of 8, NVLink switch"),
            "exchange.words": nominal(256 * KIB, "B", _EXCHANGE),
            "exchange.rows": nominal(4 * MIB, "B", _EXCHANGE),
            "overhead.context": measured(
                640 * MIB, "B", f"context, code and 19 graphs took 559 MiB, with some to spare; {_ON_H200}"
            ),
        },
    ),
)
