"""Five snapshots of MiniRay as it grows, each complete, and the tool that compares them."""
