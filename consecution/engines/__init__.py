"""The engines, one per mode: each runs a plan and returns a report."""
