"""Reading and writing model files: whole or absent, checked, without MindSpore."""
