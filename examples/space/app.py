"""The web page as a Hugging Face Space: `app.py`, with `requirements.txt` beside it."""

import os

import limelight
from limelight.integrations.web import build

page = build(limelight.load(os.environ.get("LIMELIGHT_MODEL", "pocket")))

if __name__ == "__main__":
    page.launch()
