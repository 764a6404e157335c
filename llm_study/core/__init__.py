"""What everything else stands on, without tensors; import the module you need."""
