"""Encrypted data sets: samples, options and notes of their owners; the file, written and read."""
