"""What a transcript of inference tells of an input."""
