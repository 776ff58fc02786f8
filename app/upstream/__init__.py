"""DashScope as a small client library. Knows no team, no database and no setting: it is given what it needs."""
