"""HTML pages that need nothing outside themselves, and the figures in them."""
