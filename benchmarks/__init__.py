"""Measure miniray beside what the machine could do at best, and beside its peers."""
