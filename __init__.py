"""tokenspeed: a compiler-first LLM inference toolchain for agentic traffic.

The repository root is the package. Rooms: plans, ir, targets, passes, compiler, runtime (docs/architecture.md).
"""

__version__ = "0.1.0"
