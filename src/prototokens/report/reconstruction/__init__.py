"""The report's tables and figures of how much is brought back, at what cost."""
