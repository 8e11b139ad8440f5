"""Tickets: inference that a vendor sells by the output, metered where the model runs."""
