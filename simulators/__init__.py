"""Stand-ins for what belongs to others (CRMs, providers, SMTP), faithful to their documented APIs, faults included."""
