"""The versioned allow-list of functions a plan may call, one idea per file. A plan cannot reach anything else.

May import torch and numpy; knows nothing of plans, schedulers or requests.
"""
