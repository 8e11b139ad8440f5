"""The lowest layer: random sources, sealing, identities, durable files, databases."""
