"""The real commands on the tiny model."""
