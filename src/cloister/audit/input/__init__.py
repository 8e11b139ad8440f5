"""Measurements and attacks on transcripts of inference."""
