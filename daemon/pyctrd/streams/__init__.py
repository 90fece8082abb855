"""Named streams of messages that a client opens and another call of its uses."""
