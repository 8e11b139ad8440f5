"""Engines run compiled modules, each in a process of its own that can do nothing else."""
