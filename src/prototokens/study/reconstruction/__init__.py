"""Studies of how much is brought back, at what cost: the paper's tables and figures 3 and 4."""
