"""Tenant files: ``<tenant>.yaml``, read and validated with the position of each problem. See :mod:`infra.tenants`."""
