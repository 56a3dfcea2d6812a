"""CRM sync: one level-triggered reconciler, and one file a CRM."""
