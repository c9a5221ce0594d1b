"""Fuzzing of what reads bytes from outside, guided by coverage; it needs atheris: `make fuzz`."""
