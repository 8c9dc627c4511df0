"""Stable Diffusion XL: the only place that knows its facts."""
