"""Where texts come from, and seeded samples of an exact number of tokens."""
