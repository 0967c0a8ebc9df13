"""Interrupts and failures at any place leave no hook, no mode and no changed module."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo import eval_frame
from torch.overrides import _get_current_function_mode_stack

import limelight
from limelight.attention.probe import _EAGER
from limelight.models.pipeline_model import stop_after
from limelight.utils.torch import evaluating, exclusive, frozen, recomputing

FOREIGN = SimpleNamespace(_open=True)
FAILURES = int(os.environ.get("LIMELIGHT_FAILURES", "12").replace("all", "1000"))
LONG = "LIMELIGHT_FAILURES" in os.environ
OURS = (str(Path(limelight.__file__).parent), contextlib.__file__)


def state(*modules):
    """All of a module that we could have changed: hooks, modes, gradients, attributes."""
    found = []
    for part in (part for module in modules for part in module.modules()):
        own = {k: v for k, v in vars(part).items() if not k.startswith("_") or k == "_gradient_checkpointing_func"}
        hooks = [
            len(hooks)
            for hooks in (
                part._forward_hooks,
                part._forward_pre_hooks,
                part._forward_hooks_with_kwargs,
                part._forward_pre_hooks_with_kwargs,
                part._forward_hooks_always_called,
            )
        ]
        found.append((hooks, {k: v for k, v in own.items() if isinstance(v, bool) or callable(v)}))
        found.append([(p.requires_grad, p.grad) for p in part.parameters(recurse=False)])
    # Where an interrupt hits torch's own code, a mode can come back late; it does nothing, and the next probe ends it.
    modes = [mode for mode in _get_current_function_mode_stack() if getattr(mode, "probe", FOREIGN)._open]
    return found, modes, eval_frame._stance, set(_EAGER._holders), torch.is_grad_enabled()


def difference(found, expected):
    """What two states differ in, short enough to be read."""
    parts = [pair for pair in zip(found[0], expected[0], strict=True) if pair[0] != pair[1]]
    return parts + [pair for pair in zip(found[1:], expected[1:], strict=True) if pair[0] != pair[1]]


@pytest.fixture(autouse=True)
def _lock():
    """A lock of its own for each test.

    An interrupt by tracing can come where a signal cannot, between the last line of a `with` and its end, and leaves
    the lock locked. The next thread would wait for it without end.
    """
    yield
    _EAGER._lock = threading.RLock()


class Interrupt:
    """Raise KeyboardInterrupt at one of the instructions of limelight and contextlib, counted from 0."""

    def __init__(self, at, opcodes=True):
        self.at, self.opcodes, self.count = at, opcodes, 0

    def __call__(self, frame, event, _arg):
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        frame.f_trace_opcodes = self.opcodes
        if event in ("opcode", "line", "call"):
            if self.count == self.at:
                raise KeyboardInterrupt
            self.count += 1
        return self

    def run(self, function):
        """Returns whether the interrupt came."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            function()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False


def contexts(tiny):
    """Each context, with something done inside it."""
    site, denoiser = tiny.text_sites[0], tiny.denoiser
    layer = denoiser.get_submodule(site.name)
    pixels, words = torch.zeros(1, 4, 16).double(), torch.zeros(1, 5, 32).double()

    def probe():
        with torch.no_grad(), limelight.Probe(tiny, [site]):
            layer(pixels, words)

    def stopped():
        with torch.no_grad(), stop_after(denoiser, site):
            layer(pixels, words)

    def entered(context, *args):
        def enter():
            with context(*args):
                pass

        return enter

    yield "Probe", probe
    yield "stop_after", stopped
    yield "frozen", entered(frozen, layer)
    yield "evaluating", entered(evaluating, layer.train())
    yield "recomputing", entered(recomputing, block_of(denoiser), None)


def block_of(denoiser):
    """A small part of the denoiser that can be checkpointed."""
    part = denoiser.down_blocks[0]
    part.enable_gradient_checkpointing = lambda run: vars(part).update(
        gradient_checkpointing=True, _gradient_checkpointing_func=run
    )
    return part


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Probe", "stop_after", "frozen", "evaluating", "recomputing"])
def test_an_interrupt_at_any_line_leaves_nothing(tiny, name):
    function = dict(contexts(tiny))[name]
    function()
    part = tiny.denoiser.down_blocks[0]
    before, at = state(part), 0
    while Interrupt(at, opcodes=LONG).run(function):
        if state(part) != before:
            gc.collect()  # some contexts end when the interrupted frames are gone
        assert difference(state(part), before) == [], f"line or instruction {at}"
        at += 1
    assert at > 15


def fail_somewhere(model, chance, function):
    """Run a function that an error in a random layer, a random instruction or a signal stops. Returns by what."""
    kind = chance.choice(["error", "instruction", "signal"])
    if kind == "instruction":
        return kind if Interrupt(int(10 ** chance.uniform(2, 4.7)), opcodes=False).run(function) else None
    if kind == "signal":
        return kind if signalled(10 ** chance.uniform(-2.5, -0.5), function) else None

    module, left = chance.choice(list(model.denoiser.modules())), chance.randrange(4)

    def fail(*_):
        nonlocal left
        left -= 1
        if left < 0:
            raise chance.choice([ValueError, KeyboardInterrupt, RuntimeError])("on purpose")

    register = chance.choice([module.register_forward_hook, module.register_forward_pre_hook])
    with register(fail):
        try:
            function()
        except (ValueError, RuntimeError, KeyboardInterrupt):
            return kind
    return None


def signalled(seconds, function):
    """Whether a signal came in the middle, as Ctrl-C would."""
    own = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        function()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, own)
    return False


@pytest.mark.slow
def test_failures_at_random_places_leave_nothing(tiny):
    """LIMELIGHT_FAILURES=1000 (or all) runs it for long; the test above then stops at every single instruction."""
    chance, guidance = (
        random.Random(FAILURES),
        limelight.AttendAndExcite(resolution=4, thresholds={0: 0.9}, max_refinements=1),
    )

    def generate(**options):
        options = {"steps": 1, "height": 16, "width": 16, "guidance": guidance, **options}
        return limelight.generate(tiny, "a cat and a dog", **options)

    parts = tiny.denoiser, tiny.pipeline.text_encoder, tiny.pipeline.vae
    expected, before, failed = generate(), state(*parts), []
    for number in range(FAILURES):
        options = {
            "steps": chance.choice([1, 2]),
            "guidance": chance.choice([None, guidance, replace(guidance, checkpoint=True)]),
            "record": chance.choice([False, True, "all"]),
            "edits": chance.choice([[], [lambda layer, probabilities, step: probabilities]]),
        }
        failed.append(fail_somewhere(tiny, chance, lambda options=options: generate(**options)))
        if state(*parts) != before:
            gc.collect()
        assert difference(state(*parts), before) == [], (number, failed[-1], options)
        assert is_free(tiny.denoiser), (number, failed[-1], options)
    assert torch.equal(generate().latents, expected.latents)
    print(f"{FAILURES} generations:", {kind: failed.count(kind) for kind in ("error", "instruction", "signal", None)})
    assert sum(kind is not None for kind in failed) > FAILURES // 4


def is_free(denoiser):
    """Whether another thread could take the denoiser."""
    free = []

    def take():
        free.append(exclusive(denoiser).acquire(timeout=5))
        if free[0]:
            exclusive(denoiser).release()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(timeout=10)
    return free == [True]
