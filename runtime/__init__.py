"""tokenspeed-run, tokenspeed-plan, tokenspeed-bench: loads a plan and serves it. No compiler inside.

May import plans only. Torch is imported by the engine process alone, never by the entrypoint.
"""
