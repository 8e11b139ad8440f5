"""A plan compiled to steps, and what is legal in it."""
