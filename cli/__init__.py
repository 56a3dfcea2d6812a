"""The ``leadstream`` command line: one file a command group. A command parses its arguments, calls and prints."""
