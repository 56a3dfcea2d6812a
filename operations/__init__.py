"""Tasks of operators: applying topics and migrations, and measuring the lag of consumer groups."""
