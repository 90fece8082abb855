"""What the containers of a pod share: namespaces and files."""
