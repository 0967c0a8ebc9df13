"""Libraries are silenced without being imported for it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

from limelight.utils.progress import quiet


def test_quiet(monkeypatch):
    silenced = []
    log = SimpleNamespace(disable_progress_bar=lambda: silenced.append("diffusers"))
    monkeypatch.setitem(sys.modules, "diffusers", SimpleNamespace(utils=SimpleNamespace(logging=log)))
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    quiet()
    assert silenced == ["diffusers"]
    assert "transformers" not in sys.modules
