"""What everything stands on: random sources, sealing, identities, durable files, databases."""
