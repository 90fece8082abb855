"""Networks of pods: pinned network namespaces, and CNI plugins, as programs and in-process."""
