"""Sizes that all Stable Diffusion models share."""

LATENT_PIXELS = 8
"""Pixels to one latent, on each side: the VAE halves a picture three times."""
LATENT_CHANNELS = 4
