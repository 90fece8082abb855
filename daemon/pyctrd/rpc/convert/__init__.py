"""Between messages and core values: the only place that knows both.

A message from a client becomes a core value without judgement; stores check it. A module for each group of messages:
a daemon that starts loads only those that its first callers need.
"""
