"""The report's tables and figures of where solutions lie and what they know about their text."""
