"""From a prompt's text to words and token positions."""
