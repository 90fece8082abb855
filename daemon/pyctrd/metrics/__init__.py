"""What Prometheus is told: of containers, by containerd's names, and of the daemon."""
