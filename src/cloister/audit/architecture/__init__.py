"""What the owner of a machine learns of a hidden module's architecture, from outside its engine."""
