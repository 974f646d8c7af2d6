"""Numbers about tokens and images: tensors in, dataclasses out; nothing is drawn."""
