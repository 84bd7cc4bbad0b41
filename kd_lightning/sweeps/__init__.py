"""Sweeps: how their jobs are run."""
