"""Fitting: the proto-tokens of a text, by descent through the frozen model."""
