"""Stores that another program keeps, at another socket."""
