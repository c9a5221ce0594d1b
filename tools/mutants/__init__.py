"""Break the core in small ways, and see which of them no test notices."""
