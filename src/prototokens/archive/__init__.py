"""Documents of any length as proto-tokens, lossless."""
