"""Learned words (textual inversion)."""
