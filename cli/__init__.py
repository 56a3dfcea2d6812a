"""The ``leadstream`` command line: one file per command group. A command parses its arguments, calls and prints."""
