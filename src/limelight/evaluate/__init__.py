"""Compare methods on many prompts: generate (`run`), measure (`score`) and show (`report`)."""
