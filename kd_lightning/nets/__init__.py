"""Networks, one family a file, constructed as ``Net(input_shape, num_classes, ...)``."""
