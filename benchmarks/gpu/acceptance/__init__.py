"""What gpu_acceptance.py runs: a server as users start it, traffic on it, and processes in which something is broken."""
