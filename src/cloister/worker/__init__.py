"""The untrusted worker: serves linear maps and open segments."""
