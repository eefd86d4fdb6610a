"""Mean average precision, precision, recall and F1 on images with any number of labels."""
