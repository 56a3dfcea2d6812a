"""Simulators of external services: CRMs, enrichment providers, SMTP. They follow the documented APIs, with errors."""
