"""longtake: train a video generator on short clips and roll it out into minutes of video."""

__version__ = "0.1.0"
