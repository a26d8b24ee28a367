"""Figures: `python -m bench NAME --json`."""
