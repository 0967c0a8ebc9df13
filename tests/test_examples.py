"""The examples in the docstrings of public names must run."""

from __future__ import annotations

import doctest
from functools import cache

import pytest

import limelight
from limelight.attention import maps, probe, recording
from limelight.evaluate import clip, detectors, methods, preservation, report, rows, runs, scoring, suites
from limelight.generation import calibrate, compare, generate, loop, redraw, requirements, result
from limelight.guidance import attend_and_excite, base, magnet, presets, tebopt, temperature
from limelight.integrations import watch
from limelight.integrations.web import page
from limelight.models import base as models_base
from limelight.models import loading, processors
from limelight.utils import statistics

LOAD = cache(limelight.load)  # many examples open the same model


@pytest.mark.parametrize(
    "module",
    [
        attend_and_excite,
        base,
        calibrate,
        clip,
        compare,
        detectors,
        generate,
        loading,
        loop,
        magnet,
        maps,
        methods,
        models_base,
        page,
        preservation,
        presets,
        probe,
        processors,
        recording,
        redraw,
        report,
        requirements,
        result,
        rows,
        runs,
        scoring,
        statistics,
        suites,
        tebopt,
        temperature,
        watch,
    ],
    ids=lambda m: m.__name__,
)
def test_examples(module, monkeypatch):
    monkeypatch.setattr(limelight, "load", LOAD)
    found = doctest.testmod(module, extraglobs={"limelight": limelight})
    assert found.attempted > 0
    assert found.failed == 0
