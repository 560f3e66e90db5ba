"""Raising ATen to `ts`: unification (`pattern.py`), the layouts of values (`form.py`), and rules by subject in a file each.

A new rule is one function in the tuple at the end of its file; `rules.py` lists them all; the driver is `passes/raise_aten.py`.
"""
