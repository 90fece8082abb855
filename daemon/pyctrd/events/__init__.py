"""Events to whoever subscribed."""
