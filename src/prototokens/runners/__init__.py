"""Runners of many pieces of work: in this process, or on Ray."""
