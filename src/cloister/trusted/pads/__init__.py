"""One-time pads: made beforehand, sealed in stores, used once."""
