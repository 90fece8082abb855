"""The services, a module each: decode, call once, encode."""
