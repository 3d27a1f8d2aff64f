"""How fast consecution is, beside a plain loop and consecution 0.2.0. One question per file; see README.md."""
