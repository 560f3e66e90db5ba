"""What benchmarks/mixed_load.py is made of: two classes of clients on one server, and what they saw."""
