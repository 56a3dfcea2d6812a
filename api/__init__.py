"""The front door: lead events over HTTP."""
