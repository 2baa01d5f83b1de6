"""From shards to decoded batches on the device, in an order that is a pure function and resumes in O(1)."""
