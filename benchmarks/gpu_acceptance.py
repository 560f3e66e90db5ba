"""What must hold before a plan is served on a device, tried on that device: prints a line for each check.

    python benchmarks/gpu_acceptance.py PLAN [--weights dummy|PATH] [--only CHECK]...

- serving: a server that finds no compiler, no Triton and no PATH replays the plan's goldens, answers traffic, refuses what it
  must, takes the memory the plan says (within 1 %, context and code within the reserve), refuses a second one, ends when told;
- not finite: requests whose logits are no numbers end with an error, others do not notice, whatever unused memory holds;
- lost device: a kernel faults; every request ends with an error, /health turns to 503, nothing hangs.

Every server is a process of its own. Exit code: the number of checks that did not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path

from gpu.acceptance.checks import CHECKS, Failed, Setting, gives_memory_back
from tokenspeed.plans.errors import TokenspeedError
from tokenspeed.plans.reader import Plan
from tokenspeed.runtime.device.device import Device
from tokenspeed.runtime.device.driver import Driver


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan")
    parser.add_argument("--weights", default="dummy", help="as for tokenspeed-run")
    parser.add_argument("--only", action="append", choices=CHECKS, help="these checks alone")
    arguments = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as folder, Plan.open(arguments.plan) as plan:
        if plan.manifest.device is None:
            parser.error(f"{arguments.plan} is for {plan.manifest.target.name}, which is no accelerator")
        device = Device(Driver.open(plan.manifest.device.vendor), 0)
        setting = Setting(arguments.plan, plan, arguments.weights, Path(folder), device)
        before = setting.free()
        print(json.dumps({"device": device.name, "plan": plan.manifest.model.name, "free": before}), flush=True)
        chosen = {name: CHECKS[name] for name in arguments.only or CHECKS}
        for name, check in (chosen | {"memory given back": partial(gives_memory_back, before=before)}).items():
            start = time.monotonic()
            try:
                line = {"check": name, "passed": True, **check(setting)}
            except (Failed, RuntimeError, TokenspeedError) as error:
                line = {"check": name, "passed": False, "error": str(error)}
            except Exception:
                line = {"check": name, "passed": False, "error": traceback.format_exc()[-800:]}
            failures += not line["passed"]
            print(json.dumps(line | {"seconds": round(time.monotonic() - start, 1)}), flush=True)
        device.close()
    return failures


if __name__ == "__main__":
    sys.exit(main())
