"""Real processes, killed at seeded points: whatever dies, every item must be completely processed."""
