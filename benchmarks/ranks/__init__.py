"""What several ranks do together, measured: built on a machine with Triton, run on one with devices."""
