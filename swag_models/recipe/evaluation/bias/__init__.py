"""Label and neighbour disparities between groups of images."""
