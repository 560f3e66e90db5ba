"""The `ts` dialect on MLIR: operations, types, placements, builder, parser, verifier, reference interpreter.

Imports nothing else of this package. MLIR itself is imported in `mlir.py` only.
"""
