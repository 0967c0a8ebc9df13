"""Steer a generation: one file per paper."""
