"""Attacks on the function values of encrypted training: what a curious server can compute."""
