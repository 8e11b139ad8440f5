"""Arithmetic: linear maps modulo 2^32, fixed point, Freivalds' check, and their slow oracle."""
