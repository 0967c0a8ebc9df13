"""Head relevance vectors: which cross-attention heads a concept needs.

Jungwon Park, Jungmin Ko, Dongnam Byun, Jangwon Suh, Wonjong Rhee, "Cross-Attention Head Position Patterns Can Align
with Human Visual Concepts in Text-to-Image Generative Models", 2024, https://arxiv.org/abs/2412.02237

| module | holds |
|---|---|
| `vocabulary` | concepts and their words, from files |
| `relevance` | the vectors, their file, and what they can answer |
| `counting` | compute the vectors |
| `gains` | edits by head: strengthen, adjust, weaken |
| `guidance` | Attend-and-Excite on maps weighted by head |
"""
