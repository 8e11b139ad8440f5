"""Passes: pure functions from graph to graph that keep what the model computes."""
