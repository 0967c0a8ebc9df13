"""Calls as type checkers and editors must see them: a right one passes, and each wrong one is an error on its line.

`make check` reads this file. Where a wrong call is not seen, its `ignore` has no use, and that is an error.
"""

from __future__ import annotations

import limelight

model = limelight.load("pocket")

image = limelight.generate(model, "a", guidance="focus", seeds="0-3", steps=2).images[0]
images = limelight.generate(model, ["a"], steps=2)[0].images
limelight.compare(model, "a", guidance="focus", steps=2)
limelight.explain(model, "a", words=["a"], steps=2)

limelight.generate(model, "a", stepz=2)  # type: ignore[call-overload]
limelight.generate(model, "a", steps="2")  # type: ignore[call-overload]
limelight.compare(model, "a", guidance="focus", stepz=2)  # type: ignore[call-arg]
limelight.explain(model, "a", stepz=2)  # type: ignore[call-arg]
