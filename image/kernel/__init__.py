"""Kernel configuration fragments by theme, and the checker that each line survived."""
