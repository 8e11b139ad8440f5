"""The link to a worker on this machine: shared memory, and packets over a socket pair."""
