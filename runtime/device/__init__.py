"""Accelerators through their vendor's driver library: memory, kernels compiled ahead of time, captured graphs.

Imports plans and the runtime's own host arrays; never torch, and no toolkit.
"""
