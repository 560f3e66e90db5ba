"""partition, in parts: how each operation may be cut along a mesh axis, what that costs, the choice, and the module that follows.

`passes/partition.py` runs them for one axis after the other; `passes/verify_spmd.py` checks what comes out and trusts none of it.
"""
