"""Traffic as data: sessions of turns, read from traces of several formats or drawn from measured distributions. No torch.

May import plans only. The simulator and tokenspeed-bench replay play it; nothing here waits, sends or computes.
"""
