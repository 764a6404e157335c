"""The training loop, its checkpoints, and several processes; import the module you need."""
