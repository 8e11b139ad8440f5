"""From the hidden part of a model to portable C, and from C to modules."""
