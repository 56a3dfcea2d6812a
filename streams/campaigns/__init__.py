"""Campaigns on Faust: a signal that matches a campaign's trigger becomes a message request."""
