"""Model families: what the rest of the library asks of a text-to-image model."""
