"""From an image file to stored grey values: decoding, grey scale, the breast, its place in the frame."""
