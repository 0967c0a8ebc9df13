"""The command line: options to one library call."""
