"""The device: its name, its kernels, and what MindSpore lacks on a CPU."""
