"""Registries: whom to ask for an image, who we are to them, and the distribution API."""
