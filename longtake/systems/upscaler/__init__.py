"""A small network of our own that enlarges videos."""
