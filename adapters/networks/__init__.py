"""The published network architectures, one module each; `layers` holds what several of them share."""
