"""A plan compiled to steps, and the spec of legal programs."""
