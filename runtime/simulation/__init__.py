"""A plan's real scheduler and KV manager in virtual time: traffic in, steps that take what the cost model says, a report out.

Imports plans, runtime/scheduling and runtime/traffic; no torch, no device, no clock.
"""
