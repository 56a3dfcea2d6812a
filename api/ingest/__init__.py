"""The forms in which the API accepts lead events, one file a form."""
