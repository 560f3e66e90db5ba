"""The sample program of a device, by what requests ask for: checked against float64, then timed, on the device of this machine.

    python benchmarks/gpu_sampling.py build BUNDLE [--target h200] [--vocabulary 128256]     # with Triton; needs no device
    python benchmarks/gpu_sampling.py measure BUNDLE                                          # on the device; needs no Triton

Checked for each case, at 64 rows of bfloat16 logits: greedy rows take the first of the largest; drawn tokens are those of the
same draw in float64 (cut by sorting, sums in token order), or the draw fell within a share of 1e-6 of the edge between two
tokens; a second run, and rows in another order, draw the same. Timed: a graph of the program, at 1 and at 64 rows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gpu.bundle import BuiltCase, Bundle, Step, read, write
from tokenspeed.plans.sampling import slot_buffers
from tokenspeed.runtime.functions.philox import uniform
from tokenspeed.runtime.host_arrays import committed
from tokenspeed.runtime.protocol import SamplingParameters
from tokenspeed.runtime.sampling_slots import SamplingSlots
from torch import Tensor

if TYPE_CHECKING:
    from gpu.on_device import Bench
    from tokenspeed.runtime.device.device import Launch

Arrays = list[tuple[str, str, list[int]]]
ARRAYS = "arrays.json"
ROWS, SLOTS, EDGE = (1, 64), 64, 1e-6
_TORCH = {"f32": torch.float32, "bf16": torch.bfloat16, "i32": torch.int32, "i64": torch.int64, "u8": torch.uint8}


@dataclass(frozen=True)
class Asked:
    """What every row asks for; `spread` is the deviation of the logits, `tied` how many of them are equal to the largest."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    spread: float = 2.5
    tied: int = 1


CASES = (
    Asked("greedy", {"temperature": 0.0}),
    Asked("greedy, 5 tied", {"temperature": 0.0}, tied=5),
    Asked("temperature 1"),
    Asked("top-k 50", {"top_k": 50}),
    Asked("top-p 0.9", {"top_p": 0.9}),
    Asked("top-k 50, top-p 0.9", {"top_k": 50, "top_p": 0.9}),
    Asked("min-p 0.05", {"min_p": 0.05}),
    Asked("top-p 0.95, peaked", {"top_p": 0.95}, spread=6.0),
    Asked("top-p 0.99, nearly flat", {"top_p": 0.99, "temperature": 1.5}, spread=0.7),
    Asked("top-k 40000, flat", {"top_k": 40000}, spread=0.05),
    Asked("penalties, top-p 0.9", {"top_p": 0.9, "frequency_penalty": 0.5, "repetition_penalty": 1.2}),
    Asked("greedy, 5 logprobs", {"temperature": 0.0, "logprobs": 5}),
)


def build(folder: Path, target: str, vocabulary: int) -> None:
    from tokenspeed.passes.sample_program import build_sample_program
    from tokenspeed.targets.registry import ACCELERATORS
    from tokenspeed.targets.triton.build import VERSION, build
    from tokenspeed.targets.triton.kernel import DeviceSetting
    from tokenspeed.targets.triton.sampling import SAMPLING

    program, _ = build_sample_program(vocabulary, SLOTS, SLOTS, "bf16")
    setting = DeviceSetting(ACCELERATORS[target], 2048, SLOTS, SLOTS, 64, 16)
    arrays = [
        (buffer.name, buffer.dtype, [SLOTS if isinstance(size, str) else size for size in buffer.shape])
        for buffer in program.buffers
    ]
    names = _names(vocabulary, arrays)
    binaries: dict[str, bytes] = {}
    steps: list[Step] = []
    buffers: list[tuple[str, str, int]] = []
    for call in program.calls:
        operation = SAMPLING[call.function](vocabulary, "bf16", setting)
        operands = [names.index(name) for name in (*call.inputs, *call.outputs)]
        for item in operation.intermediates:
            buffers.append(
                (item.name, item.dtype, int(np.prod([SLOTS if isinstance(size, str) else size for size in item.shape])))
            )
        for step in operation.steps:
            ((_, launch),) = step.function.variants([SLOTS])
            assert launch is not None
            kernel, binary = build(launch, ACCELERATORS[target])
            binaries[kernel.entry] = binary
            places = (*step.inputs, *step.outputs)
            steps.append(Step(kernel, tuple(place if isinstance(place, str) else operands[place] for place in places)))
    write(folder, Bundle(target, f"triton {VERSION}", (BuiltCase(str(vocabulary), tuple(steps), tuple(buffers)),)), binaries)
    (folder / ARRAYS).write_text(json.dumps(arrays))


def _names(vocabulary: int, arrays: Arrays) -> list[str]:
    """Everything that the program's calls name, in one order."""
    return ["logit_slots", *(name for name, _, _ in arrays), *(buffer.name for buffer in slot_buffers(vocabulary, SLOTS))]


class Program:
    """The sample program over arrays of one case."""

    def __init__(self, folder: Path, bench: Bench, vocabulary: int, case: Asked, seed: int) -> None:
        (self._built,) = read(folder).cases
        self._bench = bench
        made: Arrays = json.loads((folder / ARRAYS).read_text())
        self.arrays = {"logit_slots": torch.arange(SLOTS, dtype=torch.int32, device="cuda")}
        self.arrays |= {name: torch.full(shape, 7, dtype=_TORCH[dtype], device="cuda") for name, dtype, shape in made}
        self.arrays["logits"].copy_(_logits(vocabulary, case, seed))
        self.arrays |= _admitted(vocabulary, case)
        self._operands = [self.arrays[name] for name in _names(vocabulary, made)]
        self.before = {name: array.clone() for name, array in self.arrays.items()}

    def launches(self, rows: int) -> list[Launch]:
        return self._bench.launches(self._built, self._operands, {"rows": rows, "logit_rows": rows})

    def tokens(self) -> Tensor:
        """What one step draws that begins with everything as it was."""
        for name, array in self.arrays.items():
            array.copy_(self.before[name])
        self._bench.once(self.launches(SLOTS))
        return self.arrays["tokens"].clone()


def measure(folder: Path) -> bool:
    from gpu.on_device import Bench

    bench, bundle = Bench(folder), read(folder)
    vocabulary = int(bundle.cases[0].case)
    print(f"{bench.name}, torch {torch.__version__}, {bundle.compiler}, {vocabulary} tokens")
    print(f"| case | {' | '.join(f'{rows} rows, us' for rows in ROWS)} | not float64's | sound |\n|---|---|---|---|---|")
    results = []
    for number, case in enumerate(CASES):
        try:
            results.append(_row(Program(folder, bench, vocabulary, case, number), bench, case))
        except Exception as error:  # the other cases are worth having
            results.append(False)
            print(f"| {case.name} | {error!r} | | | |", flush=True)
    return all(results)


def _row(program: Program, bench: Bench, case: Asked) -> bool:
    first = program.tokens()
    others, strayed = _compared(first, program.arrays, program.before, case)
    same = bool((program.tokens() == first).all())
    order = torch.randperm(SLOTS, device="cuda")
    for name in ("logits", "logit_slots"):
        program.before[name] = program.before[name][order]
    same &= bool((program.tokens() == first[order]).all())
    times = [bench.seconds([program.launches(rows)] * 4) for rows in ROWS]
    sound = "yes" if same and not strayed else f"NO: {strayed} strayed, same again: {same}"
    print(f"| {case.name} | {' | '.join(f'{1e6 * seconds:.1f}' for seconds in times)} | {others} | {sound} |", flush=True)
    return same and not strayed


def _logits(vocabulary: int, case: Asked, seed: int) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    logits = (torch.randn(SLOTS, vocabulary, generator=generator, device="cuda") * case.spread).bfloat16()
    if case.tied > 1:
        logits[:, 1000 : 1000 + case.tied] = logits.amax() + 1
    return logits


def _admitted(vocabulary: int, case: Asked) -> dict[str, Tensor]:
    """Slot buffers of requests that ask for the case's settings, each with a seed of its own and some output."""
    state = {item.name: committed(tuple(map(int, item.shape)), item.dtype) for item in slot_buffers(vocabulary, SLOTS)}
    tables, generator = SamplingSlots(state, vocabulary), np.random.default_rng(5)
    for slot in range(SLOTS):
        parameters = SamplingParameters(**{"max_tokens": 9, "temperature": 1.0, "seed": 1000 * slot + 3, **case.settings})
        prompt, output = (generator.integers(0, vocabulary, 200).astype(np.int32) for _ in range(2))
        tables.admit(slot, parameters, (), prompt, output[: slot + 1])
    return {name: array.tensor.cuda() for name, array in state.items()}


def _compared(tokens: Tensor, after: dict[str, Tensor], before: dict[str, Tensor], case: Asked) -> tuple[int, int]:
    """How many tokens are not those of float64, and how many of these are not for rounding at an edge."""
    others = strayed = 0
    chances = uniform(before["seed"].cpu().numpy(), before["output_position"].cpu().numpy())
    for row in range(SLOTS):
        logits = before["logits"][row].float()
        if "frequency_penalty" in case.settings:
            logits = _penalised(logits, before, row)
            if not torch.allclose(after["adjusted"][row], logits, rtol=1e-5, atol=1e-5):
                return SLOTS, SLOTS
            logits = after["adjusted"][row]
        if case.settings.get("temperature") == 0.0:
            strayed += int(tokens[row]) != int((logits == logits.max()).nonzero()[0])
            continue
        wanted, distance = _drawn(logits, before, row, float(chances[row]), int(tokens[row]))
        others += wanted != int(tokens[row])
        strayed += wanted != int(tokens[row]) and distance > EDGE
    return others, strayed


def _penalised(logits: Tensor, state: dict[str, Tensor], row: int) -> Tensor:
    counts, seen = state["output_counts"][row], state["prompt_seen"][row] != 0
    repetition = state["repetition_penalty"][row]
    changed = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(seen | (counts > 0), changed, logits)
    return logits - state["presence_penalty"][row] * (counts > 0) - state["frequency_penalty"][row] * counts


def _drawn(logits: Tensor, state: dict[str, Tensor], row: int, chance: float, got: int) -> tuple[int, float]:
    """The token of the draw in float64, and how far the draw is from the nearest edge of the token `got`, as a share of all."""
    x = (logits - logits.max()) / state["temperature"][row]
    k, p = int(state["top_k"][row]), float(state["top_p"][row])
    lowest = -float("inf")
    if 0 < k < len(x):
        lowest = float(x.topk(k).values[-1])
    if p < 1.0:
        ordered = x[x >= lowest].sort(descending=True).values
        running = ordered.double().exp().cumsum(0)
        place = int((running < p * running[-1]).sum())
        lowest = max(lowest, float(ordered[min(place, len(ordered) - 1)]))
    lowest = min(max(lowest, float(torch.log(state["min_p"][row]))), 0.0)
    running = torch.where(x >= lowest, x.double().exp(), 0.0).cumsum(0)
    target = chance * running[-1]
    edges = torch.stack([running[got - 1] if got else running[0] * 0, running[got]])
    return int((running <= target).sum()), float((edges - target).abs().min() / running[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("build", "measure"))
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--target", default="h200")
    parser.add_argument("--vocabulary", type=int, default=128256)
    options = parser.parse_args(arguments)
    if options.action == "build":
        build(options.bundle, options.target, options.vocabulary)
    else:
        sys.exit(0 if measure(options.bundle) else 1)


if __name__ == "__main__":
    main()
