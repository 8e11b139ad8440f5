"""Training on encrypted data. Nothing here is imported by `import cloister`."""
