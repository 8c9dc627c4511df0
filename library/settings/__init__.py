"""What the user asked for: command-line flags and dataset files, checked and typed. Imports no MindSpore, no NumPy."""
