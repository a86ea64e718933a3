"""Networks that turn clips or frames into features: each known by a name and a hash that stand in every result."""
