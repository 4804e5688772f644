"""What runs under trio beside the workers."""
