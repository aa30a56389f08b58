"""The report's tables and figures of how much text is reconstructed, and at what cost."""
