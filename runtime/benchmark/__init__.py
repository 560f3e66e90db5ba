"""What tokenspeed-bench measures, one kind of measurement per file: results are typed, tables.py shows them.

May import plans and the rest of the runtime. Torch is imported only where a plan is run. Definitions: docs/performance.md.
"""
