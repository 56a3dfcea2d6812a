"""Measurements against references, side by side in one run: ``make bench``."""
