"""The runtime loads and runs a plan with the compiler and every compiler's library out of reach, and no PATH.

A plan of native kernels runs without torch too, sampling included.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from tokenspeed.compiler.frontends.source import open_model
from tokenspeed.compiler.options import CompileOptions
from tokenspeed.compiler.pipeline import compile_model
from tokenspeed.ir.module import context
from tokenspeed.plans.writer import write_plan

from ..tiny_models import FAMILIES, build, save

BLOCKED = ("tokenspeed.ir", "tokenspeed.passes", "tokenspeed.targets", "tokenspeed.compiler")
BLOCKED += ("torch_mlir", "transformers", "triton", "jax", "onnx", "networkx")
KERNELS = {"auto": (*BLOCKED, "torch"), "library": BLOCKED}

SCRIPT = """
import json, os, sys

BLOCKED = tuple(json.loads(sys.argv[1]))

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in BLOCKED or name.startswith(tuple(each + "." for each in BLOCKED)):
            raise ImportError(f"{name} is out of reach")

sys.meta_path.insert(0, Blocker())
assert not os.environ.get("PATH")
for name in BLOCKED:
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} can be imported: the blocker does nothing")

from tokenspeed.plans.reader import Plan
from tokenspeed.runtime.executor import load_executor
from tokenspeed.runtime.fixed_batch import Rows, fixed_batch
from tokenspeed.runtime.protocol import SamplingParameters
import numpy as np

with Plan.open(sys.argv[2]) as plan:
    executor = load_executor(plan, weights=sys.argv[3], threads=1, report=lambda phase: None)
    rows, block_tokens = [Rows(0, 0, json.loads(sys.argv[4]))], plan.manifest.kv.block_tokens
    logits = executor.logits_for(fixed_batch(rows, 1, block_tokens, all_logits=True))
    tokens = []
    for parameters in json.loads(sys.argv[5]):
        prompt = np.array(rows[0].tokens, np.int32)
        executor.admit(0, SamplingParameters(max_tokens=4, **parameters), (2,), prompt, prompt[:0])
        tokens += executor.run(fixed_batch(rows, 1, block_tokens)).tokens.tolist()
loaded = [name for name in sys.modules if name in BLOCKED or name.startswith(tuple(each + "." for each in BLOCKED))]
print(json.dumps({"loaded": loaded, "logits": logits.tolist(), "tokens": tokens}))
"""


SETTINGS = (
    {"temperature": 0.0},
    {"temperature": 0.0, "frequency_penalty": 0.5, "min_tokens": 2, "logprobs": 3},
    {"temperature": 1.0, "top_k": 1, "top_p": 0.9, "min_p": 0.1, "seed": 5},
)


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_plan_runs_with_the_compiler_out_of_reach(tmp_path: Path, kernels: Literal["auto", "library"]) -> None:
    model = build(FAMILIES["llama"])
    directory = save(model, tmp_path / "model")
    with context():
        options = CompileOptions(dtype="f32", max_context=64, kernels=kernels)
        state = compile_model(open_model(directory), options, lambda _phase, _state: None)
    assert state.manifest is not None
    write_plan(tmp_path / "plan.bin", state.manifest, state.entries)
    tokens = [5, 99, 3, 140, 7, 8, 21]
    plan, blocked = str(tmp_path / "plan.bin"), json.dumps(KERNELS[kernels])
    command = [sys.executable, "-c", SCRIPT, blocked, plan, str(directory), json.dumps(tokens), json.dumps(SETTINGS)]
    done = subprocess.run(command, cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["loaded"] == []
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    assert np.abs(np.array(found["logits"]) - expected).max() <= 1e-4
    likeliest = int(expected[-1].argmax())
    assert found["tokens"] == [likeliest] * 3
