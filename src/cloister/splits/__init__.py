"""What every split of a model costs, and what it protects."""
