"""What operators need: topics and databases brought up to date, and how far each consumer group is behind."""
