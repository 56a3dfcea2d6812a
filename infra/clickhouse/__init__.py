"""The analytics store's client and migrations."""
