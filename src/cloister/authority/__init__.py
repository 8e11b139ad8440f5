"""The key authority: holds mask keys, issues unmasking terms, counts what they leak."""
