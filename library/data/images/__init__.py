"""Pixels: reading, colours, resizing, cropping, variation."""
