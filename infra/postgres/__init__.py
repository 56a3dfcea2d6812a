"""The canonical record's pool and migrations."""
