"""From masks to real speed: ways to run a pruned network, one backend a file."""

from starfish_lab.registry import Registry

BACKENDS = Registry("starfish_lab.execution.backends", provides="build", kind="execution")
