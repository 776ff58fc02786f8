"""Tools that know none of our nouns: no team, no task, no table but the narrow `work`."""
