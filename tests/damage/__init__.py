"""Small stores, damaged byte by byte and cut off at every length: noticed with a clear error, or harmless."""
