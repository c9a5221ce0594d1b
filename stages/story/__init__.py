"""One training job, and how it dies at the beginning of each chapter."""
