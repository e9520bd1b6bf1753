"""Image encoders: product photos -> features. Each model is one file."""
