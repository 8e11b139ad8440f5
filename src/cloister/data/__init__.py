"""Users' own files: what they hold, read without changing it in silence."""
