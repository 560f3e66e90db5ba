"""Raising ATen to `ts`: unification (`pattern.py`) and one rule per `ts` operation (`rules.py`).

A new rule is one function registered in `rules.RULES`; the driver is `passes/raise_aten.py`.
"""
