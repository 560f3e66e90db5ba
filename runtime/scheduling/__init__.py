"""The scheduler and the KV manager: pure state machines, events in, step out. No torch, no clock, no I/O.

May import plans only; the compiler's planner may import this room.
"""
