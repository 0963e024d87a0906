"""Exits fitted in closed form, and thresholds with a guarantee."""
