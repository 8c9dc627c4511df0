"""Network types: one file each, on top of network_base."""
