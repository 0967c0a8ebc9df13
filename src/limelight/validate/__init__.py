"""Prove or refute what limelight claims on a model at hand: `limelight validate`."""
