"""What one-step decoding is compared with: cramming and Jacobi decoding."""
