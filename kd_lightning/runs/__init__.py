"""A run: build it, train it, write and read its directory."""
