"""A module per noun or verb; each is imported only when its command runs."""
