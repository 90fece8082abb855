"""The daemon of an ordinary user: root of a user namespace, and of nothing else."""
