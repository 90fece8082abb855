"""Running containers: bundles, shims, the table of tasks, one owner per container, recovery."""
