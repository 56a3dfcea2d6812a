"""The campaigns stage: emits a message request for each campaign signal that matches a campaign's trigger."""
