"""From token ids to batches: objectives, packing and order; import the module you need."""
