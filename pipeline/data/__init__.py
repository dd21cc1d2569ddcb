"""Images from any source as one uint8 tensor."""
