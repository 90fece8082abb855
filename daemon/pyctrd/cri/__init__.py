"""The container runtime interface (CRI v1): what a kubelet asks of a node."""
