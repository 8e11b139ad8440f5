"""Hidden modules as files: compiled by the vendor, sealed, and opened by a trusted runtime."""
