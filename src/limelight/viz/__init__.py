"""Figures of attention and guidance."""
