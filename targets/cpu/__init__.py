"""CPUs by named instruction set: rates, kernels, memory.

Registered in `targets/registry.py`; a new CPU target is one row in `machines.py`.
"""
