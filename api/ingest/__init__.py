"""The input formats of lead events, one file per format."""
