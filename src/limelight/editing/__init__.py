"""Edit an image by its prompt."""
