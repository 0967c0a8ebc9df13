"""Head relevance vectors: which cross-attention heads a concept needs.

Jungwon Park, Jungmin Ko, Dongnam Byun, Jangwon Suh, Wonjong Rhee, "Cross-Attention Head Position Patterns Can Align
with Human Visual Concepts in Text-to-Image Generative Models", 2024, https://arxiv.org/abs/2412.02237

| room | holds |
|---|---|
| `concepts` | concepts and their words, from files |
| `relevance` | the vectors, their file, what can be asked of them |
| `counting` | computing them |
| `weakening` | what is lost when heads are weakened, the most relevant first or last |
| `pictures` | heat maps and curves |
| `commands` | `limelight heads ...` |

The edits that use them are in `limelight.edits`.
"""

from .concepts import Concepts
from .relevance import Relevance

__all__ = ["Concepts", "Relevance"]
