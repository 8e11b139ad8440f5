"""Attestation: what a machine can prove of itself, and who decides whether that is enough."""
