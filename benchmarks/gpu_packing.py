"""What a device makes of a checkpoint's values when it rounds them to blocks as they arrive, against the values themselves.

    tokenspeed-compile CONFIG --target h200 --quantize int8 -o plan.bin
    python benchmarks/made_up_checkpoint.py plan.bin DIRECTORY
    python benchmarks/gpu_packing.py plan.bin DIRECTORY

Loads the plan's weights onto this machine's GPU from the checkpoint, reads the blocks back and compares what they stand for with
the checkpoint's values: of q8_0 no value may be further from its code than half a step, of q4_0, whose largest code is one short
on one side, a whole one, but for the rounding of scales to 16 bits. A line for each weight of the first and the last layer and
each outside of layers, then whether all held. Exit code 1 unless they did.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from gpu.block_cases import decoded
from tokenspeed.plans.names import weight_instances
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.recipe import sources
from tokenspeed.plans.schema import MeshAxis, Weight
from tokenspeed.plans.template import instantiate
from tokenspeed.plans.weight_layout import WEIGHT_BLOCKS
from tokenspeed.runtime.device.arrays import DeviceArray
from tokenspeed.runtime.device.device import Device
from tokenspeed.runtime.device.driver import Driver
from tokenspeed.runtime.device.placement import place_on_device
from tokenspeed.runtime.mesh import Rank

STEPS = {"q8_0": (127, 0.5), "q4_0": (8, 1.0)}
"""Of the largest value of a block, a step is that part; how many of them a value may be away."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("directory", type=Path)
    options = parser.parse_args()
    with Plan.open(options.plan) as plan:
        held = compare(plan, options.directory)
    print(json.dumps({"held": held}))
    return 0 if held else 1


def compare(plan: Plan, directory: Path) -> bool:
    assert plan.manifest.device is not None, "a plan for an accelerator"
    programs = [plan.program(item.name) for item in plan.manifest.programs]
    start = time.perf_counter()
    driver = Driver.open(plan.manifest.device.vendor)
    rank = Rank((MeshAxis(name="tp", size=1),))
    placement = place_on_device(plan, programs, str(directory), lambda _phase: None, None, driver=driver, rank=rank, groups=None)
    placement.wait_for_weights()
    taken = plan.manifest.memory.weights
    print(json.dumps({"load_seconds": round(time.perf_counter() - start, 2), "weight_bytes": taken}), flush=True)
    held = True
    for weight, name, layer in _chosen(plan):
        array = placement.surroundings.inputs[name]
        assert isinstance(array, DeviceArray)
        held &= _compared(placement._device, array, weight, layer, name, directory)  # pyright: ignore[reportPrivateUsage]
    placement.close()
    return held


def _chosen(plan: Plan) -> Iterator[tuple[Weight, str, int]]:
    for weight in plan.manifest.weights:
        instances = list(weight_instances(weight))
        if weight.dtype in WEIGHT_BLOCKS:
            yield from ((weight, *instance) for instance in dict.fromkeys((instances[0], instances[-1])))


def _compared(device: Device, array: DeviceArray, weight: Weight, layer: int, name: str, directory: Path) -> bool:
    """Rows of experts and of merged layers lie one after another, as their sources do."""
    names = [instantiate(source, layer) for source in sources(weight.recipe)]
    values = torch.cat([_read(directory, source).flatten() for source in names]).view(-1, weight.shape[-1])
    data = np.empty(array.nbytes, np.uint8)
    with device:
        device.download(data, array.address)
        device.synchronise()
    kept = torch.from_numpy(data).cuda()
    rows, columns = values.shape
    got = decoded(kept, rows, columns, weight.dtype)
    wanted = values.cuda().double()
    part, allowed = STEPS[weight.dtype]
    step = wanted.view(rows, -1, 32).abs().amax(2, keepdim=True) / part
    away = ((got - wanted).view(rows, -1, 32).abs() / step.clamp(min=1e-12)).max().item()
    rms = ((got - wanted).square().mean() / wanted.square().mean()).sqrt().item()
    held = away <= allowed + part * 2**-10  # a scale has 11 bits
    line = {"weight": name, "type": weight.dtype, "shape": [rows, columns], "largest_error_in_steps": round(away, 3)}
    print(json.dumps(line | {"relative_rms": float(f"{rms:.3e}"), "held": held}), flush=True)
    return held


def _read(directory: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    index = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    with safe_open(directory / index[name], "pt") as file:
        return file.get_tensor(name)


if __name__ == "__main__":
    sys.exit(main())
