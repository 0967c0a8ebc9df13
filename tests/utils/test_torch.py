"""Modules that several callers freeze at once."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

import pytest
import torch
from torch import nn

from limelight.utils.torch import frozen


@pytest.fixture
def module():
    """Two weights that are trained and two that are not."""
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    layers[1].requires_grad_(False)
    return layers


def trained(module):
    return [weight.requires_grad for weight in module.parameters()]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_last_of_two_holders_thaws(module, first, wrapped):
    """Whichever of the two ends first, and also where one knows the module as torch.compile returns it."""
    holders = [ExitStack(), ExitStack()]
    holders[0].enter_context(frozen(module))
    holders[1].enter_context(frozen(torch.compile(module) if wrapped else module))
    assert trained(module) == [False] * 4

    holders[first].close()
    assert trained(module) == [False] * 4
    holders[1 - first].close()
    assert trained(module) == [True, True, False, False]


def test_a_holder_in_another_thread_keeps_the_weights_frozen(module):
    """Without it, `backward` would fill the gradients of the weights."""
    entered, ended = threading.Event(), threading.Event()

    def hold():
        with frozen(module):
            entered.set()
            ended.wait(10)

    thread = threading.Thread(target=hold)
    with frozen(module):
        thread.start()
        assert entered.wait(10)
    module(torch.ones(1, 2, requires_grad=True)).sum().backward()
    assert [weight.grad for weight in module.parameters()] == [None] * 4

    ended.set()
    thread.join(10)
    assert trained(module) == [True, True, False, False]


def test_many_threads_leave_the_weights_as_they_were(module):
    seen, start = [], threading.Barrier(8)

    def hold():
        start.wait(10)
        for _ in range(20):
            with frozen(module):
                time.sleep(0.001)  # the others come and go
                seen.append(trained(module))

    threads = [threading.Thread(target=hold) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert seen == [[False] * 4] * 160
    assert trained(module) == [True, True, False, False]
