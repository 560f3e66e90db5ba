"""What benchmarks/live_agents.py is made of: arms, the plans that they serve, what was measured, and what was predicted."""
