"""Parts of benchmarks/cpu_peers.py: models, peers and their installation, measuring, and the report."""
