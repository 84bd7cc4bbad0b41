"""Sweeps: how their jobs are run, one by one or many students in one step."""
