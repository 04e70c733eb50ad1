"""Healing: pruned network + dense network + calibration images → healed network."""

from starfish_lab.registry import Registry

METHODS = Registry("starfish_lab.healing.methods", provides="objective", kind="healing method")
REPAIRS = Registry("starfish_lab.healing.repairs", provides="repair", kind="repair")
