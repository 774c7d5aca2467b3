"""Dead letters: recorded when handling is given up, replayed when the cause is mended."""
