"""What the daemon knows, in SQLite: rows in, core values out, events after the commit."""
