"""Top-1 and top-5 accuracy and calibration on ImageNet's test sets and on image folders."""
