"""Adapters: a few trainable parameters for any module; import the module you need."""
