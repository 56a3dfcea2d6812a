"""The leadstream command: one file a command group, each thin: it parses, calls and prints."""
