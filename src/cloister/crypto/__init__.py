"""Thin, opinionated wrappers over the cryptography package: randomness, sealing, key derivation."""
