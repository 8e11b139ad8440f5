"""Benchmarks as commands: ratios measured side by side in one run."""
