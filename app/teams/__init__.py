"""Who is calling: teams, their API keys, what they may call. Knows no task."""
