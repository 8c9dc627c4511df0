"""Captions and prompts: reading, drawing, tokens."""
