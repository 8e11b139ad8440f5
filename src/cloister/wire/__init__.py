"""Messages between the trusted side and a worker, and the links that carry them."""
