"""Attacks on the messages that untrusted parties received, and pages that show the results."""
