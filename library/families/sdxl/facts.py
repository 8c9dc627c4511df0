"""Numbers and names that are true of SDXL and not of every Stable Diffusion. No MindSpore."""

LATENT_SCALE = 0.13025  # sd_xl_base.yaml, scale_factor: one over the standard deviation of the training latents
SIZE_STEP = 32
"""The VAE halves a picture three times, the UNet twice more."""
HEAD_WIDTH = 64
"""Of the UNet's attention and of both text encoders'."""
GROUPS = 32
"""Of every group normalisation."""
SIZE_NUMBERS = 6
"""Original height and width, crop top and left, target height and width."""
SIZE_EMBEDDING_WIDTH = 256
"""Of the sinusoidal embedding of each of them."""
HIDDEN_1, HIDDEN_2, POOLED = "hidden_state1", "hidden_state2", "pool2"
"""kohya's names, in cache files, for the hidden states of both text encoders and the pooled output of the second."""
TEXT_2_PAD = 0
"""Token id that the second text encoder's captions are filled up with."""
