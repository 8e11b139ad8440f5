"""The trusted runtime: pads, checks, the program, its executor, the session users hold."""
