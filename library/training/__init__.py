"""One training step: noise, loss, gradients, optimizer, learning rate."""
