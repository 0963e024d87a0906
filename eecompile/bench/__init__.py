"""Measuring: speed, quality, saved work, profiles and reports."""
