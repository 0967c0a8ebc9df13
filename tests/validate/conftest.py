"""Validations of models that are in memory already."""

import pytest

import limelight.validate.context as module
from limelight.validate.runner import validate

SMALL = {"steps": 2, "height": 32, "width": 32, "device": "cpu", "budget": 1}


@pytest.fixture
def check(monkeypatch, tmp_path):
    """Validate an open model in a folder, and return the outcomes by stage."""

    def run(model, *stages, folder="out", **changes):
        monkeypatch.setattr(module, "load", lambda *args, **options: model)
        found = {}
        options = {**SMALL, "source": model.name, **changes}
        validate(out=tmp_path / folder, stages=stages, on_stage=lambda name, got: found.update({name: got}), **options)
        return found

    return run
