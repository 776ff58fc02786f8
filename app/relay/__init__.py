"""The true synchronous path: calls that the upstream answers on the connection, whole or event by event."""
