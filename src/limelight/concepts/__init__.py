"""Learned words: what they are, where they come from, and how a model is made to read them."""

from .binding import bound
from .concept import Concept
from .embedding import ExtendedEmbedding

__all__ = ["Concept", "ExtendedEmbedding", "bound"]
