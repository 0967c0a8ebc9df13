"""TACA's temperature: sharper attention to the prompt in the first steps.

Zhengyao Lv, Tianlin Pan, Chenyang Si, Zhaoxi Chen, Wangmeng Zuo, Ziwei Liu, Kwan-Yee K. Wong, "TACA: Rethinking
Cross-Modal Interaction in Multimodal Diffusion Transformers", 2025, https://arxiv.org/abs/2506.07986

In joint attention a few hundred tokens of the prompt compete with thousands of image positions. With s the scores of an
image position, those of the prompt's tokens, padding included, become

    s'_t = factor * s_t

before the softmax. No gradient and no further pass. The authors publish no figures of this change without the LoRA that
they train beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ..attention.edits import Edit
from ..errors import SettingsError
from ..models.base import Model
from ..models.sites import AttentionSite
from ..prompts.prompt import Prompt
from ..utils.numbers import check_finite


@dataclass(frozen=True)
class Temperature:
    """Multiply the scores of image positions with the prompt; an item of `edits` of `limelight.generate`.

    As all edits it acts on the conditional branch; the authors' code changes both.

    Attributes:
        factor: above 0. The paper's for FLUX.1 and SD3.5 is 1.2.
        until: the share of the steps in which it acts, 0..1; the paper's is 3 of 30.

    Raises:
        SettingsError: a value is out of range.

    Examples:
        >>> model = limelight.load("pocket", device="cpu")
        >>> sharper = limelight.generate(model, "a cat and a dog", steps=2, edits=[Temperature(until=0.5)])
        >>> sharper.settings["edits"]
        [{'name': 'temperature', 'factor': 1.2, 'until': 0.5}]
    """

    factor: float = 1.2
    until: float = 0.1

    def __post_init__(self) -> None:
        check_finite(factor=self.factor, until=self.until)
        if self.factor <= 0:
            raise SettingsError(f"factor={self.factor} must be above 0; 1 changes nothing.")
        if not 0 <= self.until <= 1:
            raise SettingsError(f"until={self.until} must be a share of the steps, 0 to 1.")

    @property
    def about(self) -> dict[str, Any]:
        return {"name": "temperature", **asdict(self)}

    def bind(self, model: Model, prompts: Sequence[Prompt], passes: int) -> Edit:
        return _Scores(self.factor, round(self.until * passes))


@dataclass(frozen=True)
class _Scores:
    """The edit of one schedule."""

    factor: float
    stop: int

    before_softmax = True

    def touches(self, layer: AttentionSite, step: int) -> bool:
        return layer.reads_text and step < self.stop

    def __call__(self, layer: AttentionSite, keys: Tensor, step: int) -> Tensor:
        return keys * self.factor
