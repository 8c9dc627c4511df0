"""What only tools use: tagging, cleaning, merging, resizing and importing data sets."""
