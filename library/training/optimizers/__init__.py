"""Update rules, one file each, and what runs them."""
