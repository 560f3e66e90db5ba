"""Triton functions, by what they compute. Imports Triton; nothing imports these files before code is generated.

Arguments in capitals are constexpr, or sizes. Counts of rows are those of the bucket. With DEPENDENT a kernel may begin before
the one ahead of it has ended: it waits before it touches what others write, on every path.
"""
