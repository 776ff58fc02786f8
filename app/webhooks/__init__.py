"""Telling the team: the outbox. Sending comes with a later part. Knows no task but by its id."""
