"""What the documents show must run."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest

import limelight

ROOT = Path(__file__).parents[1]


def blocks(document: str, language: str) -> str:
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), flags=re.S))


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/concepts.md"])
def test_python_in_the_documents_runs(document, monkeypatch, tmp_path, pocket):
    monkeypatch.chdir(tmp_path)
    for name in ("generate", "edit"):
        monkeypatch.setattr(limelight, name, partial(getattr(limelight, name), steps=2))
    names = {"model": pocket}
    exec(compile(blocks(document, "python"), document, "exec"), names)
    if document == "README.md":
        assert len(names["result"].images) == 4
        assert len(list((tmp_path / "out").glob("*.png"))) == 4
        assert names["maps"].map("dog", size=(16, 16)).shape == (1, 16, 16)


def test_links_lead_somewhere():
    for document in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("src/**/*.md"),
        *ROOT.glob("recipes/**/*.md"),
    ]:
        for link in re.findall(r"\]\(([^)#\s]+)\)", document.read_text()):
            if "://" not in link:
                assert (document.parent / link).exists(), f"{document.name} points to {link}"


def test_the_model_card_is_in_the_documents():
    """`sed 's#../../../docs/##' src/limelight/pocket/README.md > docs/pocket.md` makes it."""
    card = (ROOT / "src/limelight/pocket/README.md").read_text()
    assert (ROOT / "docs/pocket.md").read_text() == card.replace("../../../docs/", "")
