"""What may edit attention, and how an edit meets a model and its prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from ..models.base import Model
from ..models.sites import AttentionSite
from ..prompts.prompt import Prompt

Edit = Callable[["AttentionSite", Tensor, int], Tensor]
"""``edit(layer, probabilities, step)``: probabilities [images, heads, pixels, tokens] to the same shape.

An edit may have a method ``touches(layer, step)`` that says where it acts; without one it acts on every cross-attention
layer in every step. Layers that nothing touches keep their fused kernels.

An edit with ``injects = True`` changes what makes the probabilities instead: it is called with the queries of image
positions [images, heads, pixels, width], then with their keys, in layers in which image positions attend to each other.

An edit with ``before_softmax = True`` changes the scores of the prompt by its keys: it is called with those [images,
heads, tokens, width], padding included, as image positions meet them. A factor on a key is one on each of its scores.
"""

Target = Literal["probabilities", "pixels", "text"]
"""What an edit changes: probabilities, the queries and keys of image positions, or the keys of the prompt."""


@runtime_checkable
class BindableEdit(Protocol):
    """Becomes an `Edit` once the model and the prompts of a batch are known.

    Attributes:
        about: name and settings, to be stored with a result.
    """

    @property
    def about(self) -> dict[str, Any]: ...

    def bind(self, model: Model, prompts: Sequence[Prompt], passes: int) -> Edit:
        """The edit of one batch: one prompt per image, and the denoiser passes of the schedule."""


def touches(edit: Edit, layer: AttentionSite, step: int) -> bool:
    """Whether an edit acts on a layer in a step."""
    says = getattr(edit, "touches", None)
    return layer.reads_text if says is None else bool(says(layer, step))


def target(edit: Edit) -> Target:
    """What an edit changes."""
    if getattr(edit, "injects", False):
        return "pixels"
    return "text" if getattr(edit, "before_softmax", False) else "probabilities"


def bind_edits(
    edits: Sequence[Edit | BindableEdit], model: Model, prompts: Sequence[Prompt], passes: int
) -> list[Edit]:
    """Edits ready for one batch of prompts."""
    return [edit.bind(model, prompts, passes) if isinstance(edit, BindableEdit) else edit for edit in edits]


def describe_edit(edit: Edit | BindableEdit) -> Any:
    """An edit's settings, or its name, to be stored with a result."""
    return edit.about if isinstance(edit, BindableEdit) else getattr(edit, "__name__", type(edit).__name__)
