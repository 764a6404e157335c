"""Fine-tuning on conversations; import the module you need."""
