"""Code written for consecution 0.2.0 runs unchanged, but for a short list of deliberate differences."""
