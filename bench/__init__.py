"""Measurements: each module prints a Markdown table."""
