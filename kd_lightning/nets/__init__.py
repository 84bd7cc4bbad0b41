"""Networks: a family a file. Each is built as ``Net(input_shape, num_classes, ...)``."""
