"""The checkpoint registry: versions, their cards, the champion and those before it, what may go."""
