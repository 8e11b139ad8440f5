"""The vendor's key broker: it appraises a runtime, records the release, and then hands out keys."""
