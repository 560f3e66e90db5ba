"""One folder per vendor: hardware as data, kernels with their capabilities and costs, code generation.

May import plans and ir.
"""
