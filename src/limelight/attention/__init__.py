"""Read and edit attention."""
