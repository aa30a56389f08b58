"""Training an encoder through the frozen model."""
