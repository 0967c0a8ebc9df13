"""Methods that can be compared, by their names on the command line."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any

from ..editing.attention_edits import changed
from ..errors import SettingsError, meant
from ..generation.audition import Audition
from ..guidance.base import Guidance
from ..guidance.names import NAMES
from ..guidance.presets import preset
from ..heads.relevance import relevance_for
from ..models.base import Model
from ..utils.numbers import shown
from ..utils.reading import first_line, from_json
from .suites import Case


@dataclass(frozen=True)
class Method:
    """A way to generate the image of a case.

    Attributes:
        guidance: None generates without guidance.
        prompt: the prompt of a case that is generated.
        edit: the settings of `limelight.edit` that make it of the case's source; None generates it from noise.
        facts: what the edits depend on besides.
        audition: chooses the seed of each image.
        marked: whether its files say where the words are that an edit changes.
    """

    guidance: Guidance | None = None
    prompt: Callable[[Case], str] = attrgetter("prompt")
    edit: Callable[[Case], dict[str, Any]] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    audition: Audition | None = None
    marked: bool = False

    @property
    def needs_subjects(self) -> bool:
        return self.guidance is not None or self.audition is not None

    def settings(self) -> dict[str, Any]:
        guidance = None if self.guidance is None else self.guidance.settings()
        audition = {} if self.audition is None else {"audition": self.audition.settings()}
        return {"guidance": guidance, **audition, **self.facts}


def _plain(model: Model) -> Method:
    return Method()


def _source(model: Model) -> Method:
    """The image that is to be edited, of a suite of edits."""
    return Method(prompt=lambda case: case.prompt if case.source is None else case.source, marked=True)


def _guided(name: str, model: Model, **changes: Any) -> Method:
    return Method(preset(name, model, **changes))


def _audition(model: Model, *, guidance: str | None = None, **changes: Any) -> Method:
    """The best of several seeds, generated plainly or with a guidance."""
    return Method(None if guidance is None else preset(guidance, model), audition=Audition(**changes))


def _prompt_to_prompt(
    model: Model, *, cross_steps: float = 0.8, self_steps: float = 0.4, published: bool = False
) -> Method:
    settings = {"cross_steps": cross_steps, "self_steps": self_steps, "published": published}

    def edit(case: Case) -> dict[str, Any]:
        _source_of(case)
        return settings

    return Method(edit=edit, facts={"edit": settings})


def _prompt_to_prompt_heads(
    model: Model,
    *,
    head_vectors: str | None = None,
    cross_steps: float = 0.8,
    self_steps: float = 0.9,
    published: bool = False,
) -> Method:
    """P2P-HRV: the words that an edit brings in are strengthened by the heads of the case's concept."""
    vectors = relevance_for(model, head_vectors)
    settings = {"cross_steps": cross_steps, "self_steps": self_steps, "published": published}

    def edit(case: Case) -> dict[str, Any]:
        _, gained = changed(model.prompt(_source_of(case)), model.prompt(case.prompt))
        if not gained or case.concept is None:
            what = "brings no new word" if not gained else "has no concept; give it one in a column 'concept'"
            raise SettingsError(f"No word of '{case.name}' can be strengthened by heads: it {what}.")
        # The embedded model's own concepts have their own names.
        known = {"color": "Color"}.get(case.concept.casefold(), case.concept)
        concept = known if known in vectors.concepts else case.concept
        vectors.index(concept)
        return {**settings, "strengthen": dict.fromkeys(gained, concept), "head_vectors": vectors}

    sha = hashlib.sha256(vectors.vectors.numpy().tobytes()).hexdigest()[:16]
    return Method(edit=edit, facts={"edit": {**settings, "vectors": sha}})


def _code(objective: Any) -> dict[str, str]:
    """A hash of the source of an objective of one's own: changed, it generates other images."""
    sources = "".join(_sources(objective))
    if not sources:
        return {}
    return {"code": hashlib.sha256(sources.encode()).hexdigest()[:16]}


def _sources(objective: Any) -> Iterator[str]:
    """The source of an objective and of those that it is made of, where they are not limelight's."""
    while isinstance(objective, partial):
        objective = objective.func
    for part in getattr(objective, "objectives", ()):
        yield from _sources(part)

    kind = objective if inspect.isfunction(objective) else type(objective)
    if not kind.__module__.startswith("limelight."):
        with suppress(OSError, TypeError):  # written at a prompt
            yield inspect.getsource(kind)


def _source_of(case: Case) -> str:
    if case.source is None:
        raise SettingsError(f"'{case.prompt}' has no source to be edited; take a suite of edits, or 'source_prompt'.")
    return case.source


# A new method is one more line: a function of the model and of the settings that the user changes.
METHODS: Mapping[str, Callable[..., Method]] = {
    "plain": _plain,
    "source": _source,
    **{name: partial(_guided, name) for name in NAMES},
    "audition": _audition,
    "prompt-to-prompt": _prompt_to_prompt,
    "prompt-to-prompt-heads": _prompt_to_prompt_heads,
}


Own = Method | Guidance | str
"""A method of one's own: itself, a guidance, or a label of `METHODS`."""


def named(methods: Sequence[str] | Mapping[str, Own]) -> dict[str, Own]:
    """Methods by the labels that images, scores and reports have.

    Raises:
        SettingsError: a label is unknown, cannot be read or imported, or stands for something else than a method.
    """
    if isinstance(methods, str):
        methods = [methods]
    found: dict[str, Own] = {}
    for label in methods:
        own = methods[label] if isinstance(methods, Mapping) else label
        if isinstance(own, str):
            own = _imported(own) or own
        if isinstance(own, str):
            parse(own)
        elif not isinstance(own, Method | Guidance):
            raise SettingsError(
                f"The method '{label}' is {shown(own)}; it must be a limelight.Guidance, a Method of "
                "limelight.evaluate.methods, or the name of a method."
            )
        found[label] = own
    return found


def _imported(label: str) -> Method | Guidance | None:
    """The object of a label "module:object"; None where the label is the name of a method.

    An objective stands for a guidance that follows it.
    """
    module, mark, rest = label.partition(":")
    if module in METHODS or not mark or "=" in rest:
        return None

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # where a command is called, as `python -m` does
    try:
        own = attrgetter(rest)(importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(
            f"The method '{label}' cannot be imported: {first_line(error)}. Choose one of: {', '.join(METHODS)}, or "
            "write MODULE:OBJECT of a module that Python finds from here."
        ) from error
    if callable(own) and not isinstance(own, Method | Guidance | type):
        return Guidance(objective=own)
    return own  # `named` says what is wrong with it


def parse(label: str) -> tuple[str, dict[str, Any]]:
    """Split a label into the method's name and its settings.

    >>> parse("attend-and-excite:scale=10:until=0.3")
    ('attend-and-excite', {'scale': 10, 'until': 0.3})
    >>> parse("audition:guidance=recommended")
    ('audition', {'guidance': 'recommended'})

    Raises:
        SettingsError: the method is unknown, or a setting cannot be read.
    """
    name, *changes = label.split(":")
    if name not in METHODS:
        raise SettingsError(f"Unknown method '{name}'. Choose one of: {', '.join(METHODS)}.{meant(name, METHODS)}")

    settings = {}
    for change in changes:
        setting, _, value = change.partition("=")  # without "=" the value is empty, which is not JSON
        try:
            settings[setting] = value if value in METHODS else from_json(Any, value)
        except ValueError:
            raise SettingsError(
                f"'{change}' in '{label}' cannot be read. Write for example {name}:scale=10:until=0.3."
            ) from None
    return name, settings


def build(own: Own, model: Model) -> Method:
    """Build a method, or that of a label, for a model.

    Raises:
        SettingsError: the method does not take a setting, or not with this value.
    """
    if isinstance(own, Method):
        return own
    if isinstance(own, Guidance):
        return Method(own, facts=_code(own.objective))

    label = own
    name, settings = parse(label)
    try:
        return METHODS[name](model, **settings)
    except TypeError as error:
        raise SettingsError(f"'{label}' does not fit: {error}.") from error
