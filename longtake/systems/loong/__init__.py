"""Loong (Wang et al., "Loong: Generating Minute-level Long Videos with Autoregressive Language Models", 2024)."""
