"""A consumer at work: polled by one thread, handled by others, committed up to the watermark."""
