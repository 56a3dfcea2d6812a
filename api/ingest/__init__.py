"""The forms of lead event the front door takes, one file a form."""
