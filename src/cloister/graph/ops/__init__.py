"""The operators that Cloister itself understands, one file for each family."""
