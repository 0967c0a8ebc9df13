"""What guidance did, step by step."""

from __future__ import annotations

from typing import Any


class Trace(tuple[dict[str, Any], ...]):
    """The rows of `limelight.Result.trace`; notebooks show them as a table.

    Examples:
        >>> trace = Trace([{"step": 0, "loss": [0.25], "presence": [[0.75]], "refinements": [2]}])
        >>> trace[0]["loss"], "<td>0.250</td>" in trace._repr_html_()
        ([0.25], True)
    """

    def _repr_html_(self) -> str:
        """A row for each image and guided step."""
        rows = []
        for row in self:
            for image, loss in enumerate(row["loss"]):
                presence = " ".join(f"{value:.3f}" for value in row["presence"][image])
                cells = (row["step"] + 1, image, f"{loss:.3f}", presence, row["refinements"][image])
                rows.append("".join(f"<td>{cell}</td>" for cell in cells))
        heads = "".join(f"<th>{name}</th>" for name in ("step", "image", "loss", "presence", "refinements"))
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
