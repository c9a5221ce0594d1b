"""What goes with MiniRay and is made of its public API alone."""
