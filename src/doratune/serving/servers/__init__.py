"""What servers load, and what to make for those that do not load it."""
