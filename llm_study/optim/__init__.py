"""Optimizers, schedules, and what keeps training stable; import the module you need."""
