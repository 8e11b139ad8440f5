"""The compiler: a hidden graph becomes one C file, packed weights and a manifest."""
