"""The configuration: a TOML file becomes frozen values, checked once, before anything is built.

tables    what can be set: each setting with its default and its explanation
loading   from the file, and what holds without one
values    from what TOML has to the types that the tables want
checks    what is well-formed and cannot work
example   the commented file of all defaults
"""
