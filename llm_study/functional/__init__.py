"""The mathematics: pure functions on tensors, each named as in the literature; import the module you need."""
