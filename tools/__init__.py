"""Small programs around the trainer."""
