"""Kernels compiled into the plan: loading the library, describing arrays to it, running lists of calls on a team of threads.

Imports plans only; never torch.
"""
