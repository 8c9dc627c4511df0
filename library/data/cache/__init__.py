"""What is computed once and kept: latents and the text encoders' outputs."""
