"""Which ATen operations work row by row: token t of the result depends on token t of the operands and on nothing else.

Such an operation means the same on flat packed rows as on one whole sequence; any other does not and is refused. One family
of operations a file; `rules.py` says which rule belongs to which operation.
"""
