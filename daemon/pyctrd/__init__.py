"""The daemon: content, snapshots, images, containers and tasks behind containerd's API."""
