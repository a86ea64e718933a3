"""The only file that touches codecs (PyAV)."""
