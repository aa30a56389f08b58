"""Studies of where solutions lie and what they know."""
