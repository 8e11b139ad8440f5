"""Encrypted data sets: what their owners have, decide and add; how the file is made and read."""
