"""Takes a profile and a device; makes what a run will cost: tokens, FLOPs, memory, disk, hours, money."""
