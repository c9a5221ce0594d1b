"""Seeded rounds of faults: something happens to someone at some moment, and nothing may stay."""
