"""Triton kernels of the accelerators: templates of device functions, the sources they are made of, and their build.

Imports plans and ir. Triton itself is imported by `sources/` and `build.py` only, which nothing imports before code is generated.
"""
