"""Write the API reference from the public names, so that none can be missing."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import limelight

# Folder -> title of its page. The order is that of the library: a folder imports only from folders before it.
TITLES = {
    "models": "Models",
    "prompts": "Prompts",
    "attention": "Attention",
    "guidance": "Guidance",
    "generation": "Generation",
    "heads": "Heads",
    "textual_inversion": "Learned words",
    "editing": "Editing",
    "evaluate": "Evaluation",
    "viz": "Images of attention",
    "integrations": "Other pipelines",
    "errors": "Errors",
}

# Modules and names that the guides use beside the public names.
MORE = (
    "prompts.prompt",
    "prompts.subjects",
    "guidance.base.Score",
    "heads.relevance",
    "heads.gains",
    "textual_inversion.config",
    "textual_inversion.training",
    "evaluate.suites",
    "evaluate.methods",
    "evaluate.metrics",
    "evaluate.detectors",
    "viz.sheets",
    "viz.trace",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add `reference/index.md` and one page for each folder of the library."""
    pages = reference_pages()
    rows = [f"- [{TITLES[folder]}]({folder}.md)" for folder in pages]
    index = "# Reference\n\nEvery public name, by the folder that defines it.\n\n" + "\n".join(rows) + "\n"
    files.append(File.generated(config, "reference/index.md", content=index))

    for folder, content in pages.items():
        files.append(File.generated(config, f"reference/{folder}.md", content=content))
    return files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the reference into the navigation."""
    for entry in config.nav or []:
        if isinstance(entry, dict) and "Reference" in entry:
            pages = [{TITLES[folder]: f"reference/{folder}.md"} for folder in reference_pages()]
            entry["Reference"] = ["reference/index.md", *pages]
    return config


def reference_pages() -> dict[str, str]:
    """Return folder -> Markdown that mkdocstrings reads."""
    entries: dict[str, list[str]] = {folder: [] for folder in TITLES}
    for name, module in sorted(limelight._PUBLIC.items()):
        entries[module.split(".")[0]].append(
            f"::: limelight.{module}.{name}\n    options: {{heading: limelight.{name}}}\n"
        )
    for name in MORE:
        folder = name.split(".")[0]
        entries[folder].append(f"::: limelight.{name}\n")

    return {folder: f"# {TITLES[folder]}\n\n" + "\n".join(lines) for folder, lines in entries.items() if lines}
