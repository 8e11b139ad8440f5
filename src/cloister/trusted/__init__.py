"""The trusted runtime: pads, checks, the program it walks, the session users hold."""
