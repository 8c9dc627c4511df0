"""Models as pure functions over named weights."""
