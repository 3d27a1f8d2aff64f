"""Where consecution 0.2.0 kept its `Clock`; code that imports it from here keeps running."""

from consecution.clock import Clock

__all__ = ["Clock"]
