"""One pass per file, each IR -> IR or IR -> parts of a plan.

May import ir, targets and plans.
"""
