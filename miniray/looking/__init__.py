"""Look at clusters while they run: nothing of the core needs this, and it is there when asked."""
