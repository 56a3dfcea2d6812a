"""Topics as code, the one batch loop, dead letters and lag."""
