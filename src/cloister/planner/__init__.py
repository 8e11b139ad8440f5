"""What plans of a model cost, measured, and the search for the plan that meets a user's goals."""
