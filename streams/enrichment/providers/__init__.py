"""One file a provider; the folder is the list."""
