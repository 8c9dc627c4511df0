"""What a run is made of: models on a device, caches, checkpoints, sampling."""
