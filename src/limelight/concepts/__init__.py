"""Learned words: what they are, where they come from, and how a model is made to read them."""

from .binding import bound
from .concept import Concept
from .embedding import ExtendedEmbedding
from .inversion import TrainStep, invert
from .pictures import Pictures
from .state import InversionConfig, TrainState
from .training import learn

__all__ = [
    "Concept",
    "ExtendedEmbedding",
    "InversionConfig",
    "Pictures",
    "TrainState",
    "TrainStep",
    "bound",
    "invert",
    "learn",
]
