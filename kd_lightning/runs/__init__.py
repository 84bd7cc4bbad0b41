"""Runs: building and training them, writing and loading their directories."""
