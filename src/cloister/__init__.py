"""Cloister: run and train neural networks on hardware you do not trust."""
