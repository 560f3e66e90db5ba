"""Tests of what docs/ generates."""
